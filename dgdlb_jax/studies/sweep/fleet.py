"""The fleets that a sweep names: read from files, or given where there are none."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from dgdlb_jax.fleets import FleetWarning, load_autoscaler, load_events, load_fleet, load_news
from dgdlb_jax.model.network import Network

_GIVEN: ContextVar[Mapping[str, Network] | None] = ContextVar("fleets", default=None)


@contextlib.contextmanager
def fleets_given(fleets: Mapping[str, Network]) -> Iterator[None]:
    """Within it, and for this thread alone, fleets are these, by name, and no files are read."""
    before = _GIVEN.set(fleets)
    try:
        yield
    finally:
        _GIVEN.reset(before)


def fleet_network(name: str) -> Network:
    """A fleet at its mean rates, read once."""
    given = _GIVEN.get()
    return _load(name) if given is None else jax.tree.map(jnp.asarray, given[name])


@functools.cache
def _load(name: str) -> Network:
    sections = {"[[events]]": load_events, "[autoscaler]": load_autoscaler, "[news]": load_news}
    there = [section for section, load in sections.items() if load(name)]
    if there:
        inputs = "; how reports come is an input, news.interval" if "[news]" in there else ""
        warnings.warn(f"{name}: a sweep leaves out its {' and '.join(there)}{inputs}.", FleetWarning, stacklevel=2)
    return load_fleet(name, demand="constant").anonymous()
