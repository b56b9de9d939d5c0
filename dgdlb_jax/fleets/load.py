"""Loading fleets: built-in ones by name, a user's own by path."""

import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.autoscalers import read_autoscaler
from dgdlb_jax.fleets.curves import Service, read_service
from dgdlb_jax.fleets.demands import Base, read_demand, read_pattern
from dgdlb_jax.fleets.document import FleetWarning, Folder, Section, clipped, parse
from dgdlb_jax.fleets.events import read_events
from dgdlb_jax.fleets.latencies import Places, read_latencies
from dgdlb_jax.fleets.news import read_news
from dgdlb_jax.model.demand import AbstractDemand
from dgdlb_jax.model.events import Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics.files import exists, is_folder
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import closest
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.estimates import Scraped

_SECTIONS = (
    "frontends",
    "backends",
    "curves",
    "latency",
    "arcs",
    "demand",
    "capacity",
    "events",
    "autoscaler",
    "news",
    "sources",
)


@dataclass(frozen=True)
class Source:
    """Where figures of a fleet come from."""

    name: str
    title: str
    licence: str
    url: str = ""
    date: str = ""
    note: str = ""


@dataclass(frozen=True)
class FleetInfo:
    """What a fleet is, in a few figures.

    - `total_rate`: sum of the mean arrival rates, requests/s; `load`: the same over the total nominal capacity.
    - `service_time`: seconds that a request takes which is alone on the fastest and on the slowest backend.
    - `demands`: what `load_fleet(..., demand=...)` takes.
    - `fits`: one sentence per measured table: how far it was measured, how well the curve fits, where the table falls or
      is not concave, and where extrapolation leads.
    """

    name: str
    description: str
    frontends: int
    backends: int
    total_rate: float
    load: float
    service_time: tuple[float, float]
    demands: tuple[str, ...]
    sources: tuple[Source, ...]
    fits: tuple[str, ...]


def load_fleet(fleet: str | Path, *, demand: str | None = None) -> Network:
    """A fleet as a network with names.

    **Arguments:**

    - `fleet`: the name of a built-in fleet (`list_fleets`), or the path of a fleet file.
    - `demand`: one of the file's demands over time, `"constant"` for the mean rates. By default what the file says,
      which is the mean rates in all built-in fleets.

    **Returns:** a `Network`. A table that needed interpretation (what was understood), or that falls, is not concave somewhere or
    says little of what lies outside the measured range, causes a `FleetWarning`.

    **Raises:** `InputError`, one sentence that names file, line where known, field, value and remedy.
    """
    document, folder = _open(fleet)
    network, service = _read(document, folder, demand)
    for text in (*document.notes, *(str(fit) for fit in service.fits.values() if fit.is_doubtful)):
        warnings.warn(text, FleetWarning, stacklevel=2)
    return network


def read_measured(fleet: str | Path) -> Service:
    """The service curves of a fleet and the measurements behind them. Arguments and errors are those of `load_fleet`."""
    document, folder = _open(fleet)
    return read_service(document, document.section("backends"), document.section("backends").names("names"), folder)


def load_events(fleet: str | Path, *, demand: str | None = None) -> tuple[Event, ...]:
    """What happens in a fleet, its `[[events]]`: for `simulate(network, ..., events=...)`. None where the file has none.

    **Arguments:** `fleet` and `demand` as for `load_fleet`.

    **Raises:** `InputError` that names file, number of the event, field and remedy.
    """
    return read_events(*_quietly(fleet, demand))


def load_news(fleet: str | Path) -> Scraped | None:
    """How the frontends of a fleet get their reports, its `[news]`: for `estimated(policy, news)`. None where the file has none.

    **Raises:** `InputError` that names file, line, field and remedy.
    """
    return read_news(*_quietly(fleet))


def load_autoscaler(fleet: str | Path) -> AbstractAutoscaler | None:
    """What moves the replicas of a fleet, its `[autoscaler]`: for `simulate(network, ..., autoscaler=...)`. None where the file has none.

    **Raises:** `InputError` that names file, line, field and remedy.
    """
    return read_autoscaler(*_quietly(fleet))


def _quietly(fleet: str | Path, demand: str | None = "constant") -> tuple[Section, Network]:
    """The file and the network that it describes, without the warnings that `load_fleet` gives."""
    document, folder = _open(fleet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FleetWarning)
        network, _ = _read(document, folder, demand)
    return document, network


def describe_fleet(fleet: str | Path) -> FleetInfo:
    """A fleet in a few figures: see `FleetInfo`. Arguments and errors are those of `load_fleet`."""
    document, folder = _open(fleet)
    network, service = _read(document, folder, "constant")
    alone = 1 / np.asarray(service.curve.initial_slope, float)
    return FleetInfo(
        name=str(network.name),
        description=document.text_of("description", ""),
        frontends=network.frontends,
        backends=network.backends,
        total_rate=float(network.arrival_rate.sum()),
        load=float(network.load),
        service_time=(float(alone.min()), float(alone.max())),
        demands=("constant", *document.section("demand", {}).sections()),
        sources=_sources(document),
        fits=tuple(str(fit) for fit in service.fits.values()),
    )


def fleet_names() -> tuple[str, ...]:
    """The names of the built-in fleets."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _data().iterdir() if file.name.endswith(".toml")))


def list_fleets() -> tuple[FleetInfo, ...]:
    """The built-in fleets, in a few figures each."""
    return tuple(describe_fleet(name) for name in fleet_names())


def _data() -> Folder:
    return resources.files("dgdlb_jax") / "data"


def _open(fleet: str | Path) -> tuple[Section, Folder]:
    """The parsed file, and the folder in which its tables are looked for."""
    if isinstance(fleet, str) and fleet in fleet_names():
        return parse(_data() / f"{fleet}.toml"), _data()
    path = Path(fleet)
    if not exists(path) and not (isinstance(fleet, Path) or path.suffix == ".toml" or len(path.parts) > 1):
        raise _unknown(str(fleet))
    if is_folder(path):
        raise InputError(f"{path} is a folder: give the path of the fleet's .toml file.")
    return parse(path), path.parent


def _unknown(name: str) -> InputError:
    near = closest(name, fleet_names(), cutoff=0.4)
    hint = "" if near is None else f'did you mean "{near}"? '
    return InputError(
        f'There is no built-in fleet and no file called "{clipped(name)}": {hint}Built-in are {", ".join(fleet_names())}; '
        "your own fleet is the path of a .toml file."
    )


def _read(document: Section, folder: Folder, demand: str | None) -> tuple[Network, Service]:
    document.only("name", "description", *_SECTIONS)
    _sources(document)
    frontends, backends = document.section("frontends"), document.section("backends")
    frontends.only("names", "region", "rate", "weight", "load", "allow_overload")
    backends.only("names", "region", "curve", "replicas")
    places = _places(frontends, backends)
    service = read_service(document, backends, places.backends, folder)
    latencies = read_latencies(document, places, folder)
    reachable = np.asarray(latencies.mask.any(axis=0))
    rate = _rates(frontends, len(places.frontends), service, reachable)
    network = document.build(
        Network,
        read_demand(document.section("demand", {}), demand, Base(places.frontends, rate), folder),
        latencies.forward,
        service.curve,
        mask=latencies.mask,
        feedback_latency=latencies.feedback,
        cost_latency=latencies.cost,
        capacity=_capacity(document, places, folder),
        frontend_names=places.frontends,
        backend_names=places.backends,
        name=document.name_of("name", clipped(document.file.removesuffix(".toml"))),
    )
    # A mistake there is one in the fleet, whoever reads it.
    events, autoscaler = read_events(document, network), read_autoscaler(document, network)
    read_news(document, network)
    if autoscaler is not None and events:
        found = signals(network, events)
        if found.replicas is not None or found.timeout is not None or found.news is not None:
            raise document.error(
                "autoscaler",
                "stands beside [[events]] that change replicas, give a timeout or slow news down",
                "leave one of them out.",
            )
    return network, service


def _places(frontends: Section, backends: Section) -> Places:
    names = [section.names("names") for section in (frontends, backends)]
    for section, known in zip((frontends, backends), names, strict=True):
        twice = [name for k, name in enumerate(known) if name in known[:k]]
        if twice:
            raise section.error(
                "names", f'contains "{twice[0]}" twice', "rename one, and give its region under region."
            )
    regions = [
        section.names("region", len(known), known) for section, known in zip((frontends, backends), names, strict=True)
    ]
    return Places(names[0], names[1], regions[0], regions[1])


def _rates(frontends: Section, count: int, service: Service, reachable: np.ndarray) -> Float[np.ndarray, " frontends"]:
    """The mean rates, given outright or as weights at a load."""
    if "rate" in frontends:
        for key in ("weight", "load"):
            if key in frontends:
                raise frontends.error(key, "stands beside rate", "give either rate, or weight and load.")
        rate = np.array(frontends.numbers("rate", count))
        _check_capacity(frontends, rate, service, reachable)
        return rate
    if "weight" not in frontends:
        raise frontends.error("rate", "is missing", "give rate in requests/s, or weight and load.")
    weight = np.array(frontends.numbers("weight", count))
    if not 0 < weight.sum() < np.inf:
        raise frontends.error("weight", f"sums to {weight.sum():g}", "give at least one positive weight.")
    capacity = np.asarray(service.curve.nominal_capacity, float)[reachable].sum()
    rate = weight / weight.sum() * frontends.number("load", above=True) * capacity
    _check_capacity(frontends, rate, service, reachable)
    return rate


def _check_capacity(frontends: Section, rate: np.ndarray, service: Service, reachable: np.ndarray) -> None:
    """The total rate must be below what the reachable backends can serve at all. (The optimum looks at every subset.)"""
    most = np.asarray(service.curve.supremum, float)[reachable].sum()
    if rate.sum() >= most and not frontends.flag("allow_overload", False):
        raise frontends.error(
            "rate" if "rate" in frontends else "load",
            f"asks for {rate.sum():g} requests/s in all, but the backends can serve no more than {most:g}",
            "lower it, add replicas, or set allow_overload = true to study the overload.",
        )


def _capacity(document: Section, places: Places, folder: Folder) -> AbstractDemand | None:
    """The factor on the service rates over time, if there is one."""
    if "capacity" not in document:
        return None
    return read_pattern(document.section("capacity"), Base(places.backends, np.ones(len(places.backends))), folder)


def _sources(document: Section) -> tuple[Source, ...]:
    """The sources table: a title and a licence for each."""
    sources = []
    for name, section in document.section("sources", {}).sections().items():
        section.only("title", "licence", "url", "date", "note")
        optional = {key: section.text_of(key, "") for key in ("url", "date", "note")}
        sources.append(Source(name, section.text_of("title"), section.text_of("licence"), **optional))
    return tuple(sources)
