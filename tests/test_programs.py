"""Programs kept between processes: found again by what they are made from, never by anything else."""

import contextvars
import functools
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics import programs
from dgdlb_jax.numerics.canonical import Unnamed, canonical
from dgdlb_jax.policies import LatencyScorer
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation.start import default_start
from helpers import own_process, single_precision

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def network() -> dgd.Network:
    """Two frontends, two backends."""
    return dgd.Network([4.0, 2.0], [[0.02, 0.15], [0.15, 0.02]], Hyperbolic([8.0, 8.0], [6.0, 6.0]))


def with_rate(network: dgd.Network, rate: jax.Array) -> dgd.Network:
    """The same network, other requests."""
    return dgd.Network(rate, network.latency, network.service)


def kept(folder, compute):
    """What it computes with the programs of a folder, as in a process that has just begun; and the folder's files by name."""
    context = contextvars.copy_context()
    context.run(programs.kept_in, folder)
    found = context.run(compute)
    return found, {file.name: file for file in folder.rglob("*") if file.is_file()}


def at_rest(network: dgd.Network) -> float:
    """A small program with a search in it, and some arithmetic of NumPy's."""
    return latency_at_rest(network, np.full(network.latency.shape, 0.5))


def traced(compute) -> set[str]:
    """The functions that JAX traces meanwhile."""
    seen = set()
    listener = lambda event, _, **about: seen.add(about.get("fun_name", "")) if "jaxpr_trace" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        compute()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return {name for name in seen if "_workload" in name or "_solve_batch" in name}


def test_the_next_process_gets_the_same_numbers_without_tracing(network, tmp_path):
    both = lambda: (solve_optimum(network), at_rest(network))
    plain, found = both(), []
    for expected in (2, 0):
        jax.clear_caches()
        names = traced(lambda: found.append(kept(tmp_path, both)[0]))
        assert len(names) == expected, names
    for each in found:
        jax.tree.map(np.testing.assert_array_equal, each, plain)


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: content[:-1] + b"\0", lambda _: b""],
    ids=["cut", "altered", "empty"],
)
def test_a_program_is_made_again_where_its_file_is_damaged(network, tmp_path, damage):
    _, files = kept(tmp_path, lambda: at_rest(network))
    sizes = {}
    for name, file in files.items():
        sizes[name] = len(content := file.read_bytes())
        file.write_bytes(damage(content))
    found, after = kept(tmp_path, lambda: at_rest(network))
    assert found == at_rest(network)
    assert {name: len(file.read_bytes()) for name, file in after.items()} == pytest.approx(sizes, rel=0.01)


def test_shapes_and_settings_have_programs_of_their_own(network, tmp_path):
    _, first = kept(tmp_path, lambda: at_rest(network))
    _, same = kept(tmp_path, lambda: at_rest(with_rate(network, jnp.asarray([3.0, 2.5]))))
    assert same.keys() == first.keys()  # numbers are no part of a program
    wider = dgd.Network([4.0, 2.0], np.full((2, 3), 0.1), Hyperbolic([8.0, 8.0, 8.0], [6.0, 6.0, 6.0]))
    found, second = kept(tmp_path, lambda: at_rest(wider))
    assert len(second) > len(first)
    assert found == at_rest(wider)
    with jax.debug_nans(True):
        _, third = kept(tmp_path, lambda: at_rest(network))
    assert len(third) > len(second)
    with single_precision():
        narrow = dgd.Network([4.0, 2.0], [[0.02, 0.15], [0.15, 0.02]], Hyperbolic([8.0, 8.0], [6.0, 6.0]))
        found, fourth = kept(tmp_path, lambda: at_rest(narrow))
        assert found == at_rest(narrow)
    assert len(fourth) > len(third)


class Mine(DGDLB):
    """A balancer of a user's own, whose code may be another one tomorrow."""

    def velocity(self, t, routing, observation, state):
        velocity, state = super().velocity(t, routing, observation, state)
        return 2 * velocity, state


def test_code_of_a_users_own_is_never_kept(network, tmp_path):
    run = lambda policy: dgd.simulate(network, policy, duration=2.0, dt=0.1).final.workload
    own, files = kept(tmp_path, lambda: run(Mine(0.05)))
    np.testing.assert_array_equal(own, run(Mine(0.05)))
    theirs, more = kept(tmp_path, lambda: run(DGDLB(0.05)))
    np.testing.assert_array_equal(theirs, run(DGDLB(0.05)))
    assert len(more) > len(files)
    assert np.abs(own - theirs).max() > 1e-6


def test_within_a_program_and_its_derivative_everything_is_traced_as_ever(network, tmp_path):
    batch = dgd.stack([network])
    start = lambda rate: default_start(with_rate(batch, rate))[1].sum()
    value, slope = kept(tmp_path, lambda: jax.jit(jax.value_and_grad(start))(batch.arrival_rate))[0]
    expected = jax.value_and_grad(start)(batch.arrival_rate)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-12)
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_costs_only_time(network, tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    context = contextvars.copy_context()
    context.run(programs.kept_in, place)
    assert context.run(lambda: at_rest(network)) == at_rest(network)


def test_programs_that_nobody_asked_for_in_a_month_go(network, tmp_path):
    old, recent = tmp_path / "0123", tmp_path / "4567"
    for folder, days in ((old, 31), (recent, 29)):
        folder.mkdir()
        (folder / "program").write_bytes(b"")
        os.utime(folder, (time.time() - days * 86400,) * 2)
    kept(tmp_path, lambda: at_rest(network))
    assert not old.exists()
    assert recent.exists()


def test_an_exception_leaves_nothing_behind(tmp_path):
    impossible = dgd.Network([40.0, 2.0], [[0.02, 0.15], [0.15, 0.02]], Hyperbolic([8.0, 8.0], [6.0, 6.0]))
    with pytest.raises(dgd.InputError, match="capacity"):
        kept(tmp_path, lambda: solve_optimum(impossible))


def test_the_command_line_prints_the_same_when_it_finds_its_programs(tmp_path):
    """A process that makes programs, and one that finds them: it writes none."""
    settings = own_process() | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "dgdlb_jax", "run", "two-by-two", "--no-files", "--json", "--quiet"]
    command += ["--policies", "dgd-lb"]
    printed, written = [], []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=300, check=True)
        printed.append(json.loads(done.stdout))
        files = [file for file in (tmp_path / "programs").rglob("*") if file.is_file()]
        written.append({file: file.stat().st_mtime_ns for file in files})
    assert written[0]
    assert written[1] == written[0]
    assert printed[0] == printed[1]


@pytest.mark.parametrize(("said", "expected"), [("0", False), ("1", True)])
def test_the_environment_says_whether_programs_are_kept(said, expected, tmp_path):
    """In a process of its own, since nothing is kept either where a test has imported code of a user's."""
    code = (
        "from dgdlb_jax.cli.common import set_up_jax; set_up_jax(host=True)\n"
        "import dgdlb_jax as dgd\n"
        "from dgdlb_jax.equilibrium.at_rest import latency_at_rest\n"
        "from dgdlb_jax.model.service import Hyperbolic\n"
        "latency_at_rest(dgd.Network([4.0], [[0.02]], Hyperbolic([8.0], [6.0])), [[1.0]])"
    )
    settings = own_process() | {"DGDLB_KEEP_PROGRAMS": said, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=settings, timeout=120)
    assert (tmp_path / "programs").exists() == expected


def test_nothing_is_kept_where_a_program_may_be_spread_over_devices(tmp_path):
    """As in a sweep, with a device for every core: such a program cannot be read on one of them."""
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 2); jax.config.update('jax_enable_x64', True)\n"
        "import pathlib, sys, dgdlb_jax as dgd\n"
        "from dgdlb_jax.equilibrium.at_rest import latency_at_rest\n"
        "from dgdlb_jax.model.service import Hyperbolic\n"
        "from dgdlb_jax.numerics import programs\n"
        "folder = pathlib.Path(sys.argv[1]); programs.kept_in(folder)\n"
        "network = dgd.Network([4.0], [[0.02]], Hyperbolic([8.0], [6.0]))\n"
        "print(latency_at_rest(network, [[1.0]]), sum(file.is_file() for file in folder.rglob('*')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=own_process()
    )
    latency, files = done.stdout.split()
    assert float(latency) == pytest.approx(6.0 / (8.0 - 4.0) + 0.02)
    assert files == "0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(1, True, id="truth"),
        pytest.param(1, 1.0, id="kind-of-number"),
        pytest.param(0.0, -0.0, id="sign"),
        pytest.param("1", 1, id="text"),
        pytest.param((1, 2), [1, 2], id="kind-of-sequence"),
        pytest.param(np.dtype("float32"), np.dtype("float64"), id="type-of-numbers"),
        pytest.param(np.zeros(2), np.zeros(3), id="length"),
        pytest.param(np.zeros(2), np.ones(2), id="numbers"),
        pytest.param(jnp.sin, jnp.cos, id="function"),
        pytest.param(functools.partial(proportional, 1), functools.partial(proportional, 2), id="argument"),
        pytest.param(DGDLB(1.0), DGDLB(2.0), id="parameter"),
        pytest.param(LatencyScorer(picker="max-score"), LatencyScorer(picker="weighted-random"), id="word"),
        pytest.param(frozenset("ab"), frozenset("ac"), id="set"),
        pytest.param({"a": 1}, {"a": 2}, id="table"),
    ],
)
def test_values_that_differ_are_told_apart(one, other):
    assert canonical(one) != canonical(other)
    assert canonical(one) == canonical(one)


def test_names_are_the_same_in_every_process():
    """Whatever the seed of hashes and the addresses."""
    code = (
        "from dgdlb_jax.numerics.canonical import canonical; from dgdlb_jax.model.batch import each_network; import functools;"
        "from dgdlb_jax.policies.gradient import DGDLB; import numpy as np;"
        "print(canonical((each_network, functools.partial(each_network, 1), DGDLB(np.float64(.5)), frozenset('abcdef'), {'b': 1})))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=own_process() | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    ]
    assert said[0] == said[1]
    assert "0x" not in said[0]


def test_functions_are_told_apart_by_what_they_close_over():
    at = jax.tree_util.Partial  # of a module that has a version
    closed = [Hyperbolic([8.0], [6.0]), Hyperbolic([8.0], [7.0])]
    assert canonical(at(proportional, closed[0])) != canonical(at(proportional, closed[1]))


NAMELESS = [object(), lambda: 1, Mine(1.0), Mine, iter(()), np.array([object()])]


def test_what_is_not_there_yet_has_no_name():
    def early():
        return late

    with pytest.raises(Unnamed):
        canonical(early)
    late = 1


@pytest.mark.parametrize("value", NAMELESS, ids=lambda value: type(value).__name__)
def test_what_says_nothing_lasting_about_itself_has_no_name(value):
    with pytest.raises(Unnamed):
        canonical(value)
    with pytest.raises(Unnamed):
        canonical((1, {"within": [value]}))
