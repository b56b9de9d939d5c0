"""Pictures of sweeps: axes in, axes out, the numbers of the dataset, names that are checked."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("xarray", reason="install the sweep extra")

import xarray
from matplotlib.figure import Figure

from dgdlb_jax.cli import main
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports import sweep_plots as pictures

SEEDS, STEPS, POLICIES = 30, [0.1, 0.3, 1.0, 3.0], ["dgd-lb", "least-latency"]


@pytest.fixture(scope="module")
def dataset():
    """A sweep made of numbers: two policies, 30 seeds, four step sizes; one policy diverges at the largest of them."""
    draw = np.random.default_rng(0)
    shape = (len(POLICIES), SEEDS, len(STEPS))
    excess = 10 ** draw.uniform(-4, -1, shape)
    excess[1, :, -1] = np.inf
    verdict = np.where(np.isinf(excess), 2, (excess > 0.05).astype(float))
    units = {"units": "1"}
    limits = {"critical_step_size": 2.0, "sufficient_step_size": 1.0, "default_step_size": 0.5}
    return xarray.Dataset(
        {
            "excess": (("policy", "seed", "step_size_over_default"), excess, units),
            "verdict": (("policy", "seed", "step_size_over_default"), verdict, units),
            "settle_time": (("policy", "seed", "step_size_over_default"), 100 * excess, {"units": "s"}),
            **{
                name: (("policy", "seed", "step_size_over_default"), np.full(shape, x), units)
                for name, x in limits.items()
            },
        },
        coords={
            "policy": POLICIES,
            "seed": np.arange(SEEDS),
            "step_size_over_default": ("step_size_over_default", STEPS),
        },
        attrs={"title": "Sweep made-up"},
    )


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_curves_draw_medians_bands_and_marks(dataset):
    figure = Figure()
    given = figure.subplots()
    ax = pictures.curves(dataset, ax=given)
    assert ax is given
    found = lines(ax)
    expected = dataset["excess"].sel(policy="dgd-lb").quantile(0.5, "seed", method="nearest")
    np.testing.assert_array_equal(found["DGD-LB"].get_xdata(), STEPS)
    np.testing.assert_allclose(found["DGD-LB"].get_ydata(), expected)
    assert np.isnan(found["least latency"].get_ydata()[-1])
    assert found["critical"].get_xdata()[0] == 4.0
    assert found["sufficient (smallest)"].get_xdata()[0] == 2.0
    assert ax.get_xlabel() == "step size / default"
    assert ax.get_yscale() == ax.get_xscale() == "log"
    assert ax.get_ylim()[1] < 10, "what is infinite leaves no room for what is not"


def test_a_line_that_a_logarithmic_axis_cannot_show_is_said(dataset):
    zero = dataset["settle_time"].where(dataset["policy"] != "dgd-lb", 0.0)
    shown = pictures.curves(dataset.assign(settle_time=zero), y="settle_time", by="policy")
    assert {"DGD-LB (0, not shown)", "least latency"} <= set(lines(shown))
    assert "DGD-LB" in lines(pictures.curves(dataset, y="settle_time", by="policy"))


def test_verdicts_are_shares(dataset):
    ax = pictures.verdicts(dataset.sel(policy=["least-latency"]))
    heights = np.array([[bar.get_height() for bar in group] for group in ax.containers])
    np.testing.assert_allclose(heights.sum(0), 1)
    codes = dataset["verdict"].sel(policy="least-latency").values
    np.testing.assert_allclose(heights[0], (codes == 0).mean(0))
    assert heights[-1][-1] == 1


def test_heatmap_has_the_medians(dataset):
    ax = pictures.heatmap(dataset)
    shown = ax.images[0].get_array()
    expected = np.log10(dataset["excess"].quantile(0.5, "seed", method="nearest").values)
    np.testing.assert_allclose(shown[0], expected[0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["DGD-LB", "least latency"]
    assert np.ma.is_masked(shown[1, -1])
    assert ax.get_title(loc="left").endswith("(grey: none)")
    assert "grey" not in pictures.heatmap(dataset.isel(step_size_over_default=[0, 1])).get_title(loc="left")
    scale = ax.figure.axes[1].yaxis.get_major_formatter()
    assert scale(-2.0, 0) == "1 %"  # of the logarithm


def test_a_heatmap_of_other_inputs_shows_one_policy_and_says_which(dataset):
    """Two loads besides: the medians of DGD-LB alone, although the other balancer diverges at the last step."""
    wider = xarray.concat([dataset, dataset], xarray.DataArray([0.5, 0.7], dims="load", name="load"))
    ax = pictures.standard_pictures(wider)["heatmap"].axes[0]
    assert "made-up, DGD-LB: excess" in ax.get_title(loc="left")
    expected = np.log10(dataset["excess"].sel(policy="dgd-lb").quantile(0.5, "seed", method="nearest").values)
    np.testing.assert_allclose(ax.images[0].get_array(), np.stack([expected] * 2))
    assert "DGD-LB" not in pictures.heatmap(dataset).get_title(loc="left")  # there the balancers are the rows


def test_nothing_is_drawn_where_nothing_settles(dataset):
    assert "settling" not in pictures.standard_pictures(dataset.assign(settle_time=np.nan * dataset["settle_time"]))


def test_distribution_ends_where_values_are_infinite(dataset):
    found = lines(pictures.distribution(dataset))
    assert found["DGD-LB"].get_ydata()[-1] == 1
    assert found["least latency"].get_ydata()[-1] == 0.75
    half = np.searchsorted(found["DGD-LB"].get_ydata(), 0.5)
    np.testing.assert_allclose(found["DGD-LB"].get_xdata()[half], np.median(dataset["excess"].values[0]), rtol=0.05)


def test_standard_pictures_and_files(dataset, tmp_path):
    figures = pictures.standard_pictures(dataset)
    assert set(figures) == {"curves", "verdicts", "settling", "heatmap", "distribution"}
    paths = pictures.save_pictures(figures, tmp_path / "new")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{name}.png" for name in figures}


def test_axes_of_names_only_have_a_distribution(dataset):
    assert set(pictures.standard_pictures(dataset.isel(seed=0, step_size_over_default=0))) == {"distribution"}


def test_unknown_names_are_named(dataset, tmp_path, capsys):
    for arguments, expected in (
        ({"x": "step_size_over_defalt"}, 'did you mean "step_size_over_default"'),
        ({"y": "exces"}, 'did you mean "excess"'),
        ({"by": "polcy"}, 'did you mean "policy"'),
        ({"x": "policy"}, "is not a number: use --by policy"),
    ):
        with pytest.raises(InputError, match=expected.replace("?", r"\?")):
            pictures.standard_pictures(dataset, **arguments)
    with pytest.raises(InputError, match="two inputs that vary"):
        pictures.heatmap(dataset.isel(policy=0))
    assert main(["plot", str(tmp_path / "nothing.zarr")]) == 2
    assert "is no store of a sweep" in capsys.readouterr().err
