"""What an exporter is: a format in which other programs take routings, written and read back."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dgdlb_jax.numerics.results import InputError

Shares = Float[np.ndarray, "frontends backends"]
ByName = dict[str, dict[str, float]]
"""Frontend -> backend -> share, with the names that a format uses."""

TOTAL_WEIGHT = 10_000
"""The sum of a frontend's weights where a format leaves it open."""


class Names(NamedTuple):
    """What frontends and backends are called."""

    frontends: tuple[str, ...]
    backends: tuple[str, ...]


class Exporter(NamedTuple):
    """One format.

    - `name`: what `--export` takes. `suffix` of its files.
    - `total`: what the whole-number weights of a frontend sum to; None where shares are written as they are.
    - `write(shares, names)`: the text of a file, from shares that `rounded` has made whole weights over `total`.
    - `read(document)`: the shares in a JSON document of this format, None for any other document; `read` is None where the format
      is no JSON.
    - `labels(names)`: the names as this format writes them. None of them is another's own name.
    - `most`: the most backends that a frontend can have.
    """

    name: str
    suffix: str
    total: int | None
    write: Callable[[Shares, Names], str]
    read: Callable[[Any], ByName | None] | None
    labels: Callable[[Names], Names] = lambda names: names
    most: int | None = None

    def rounded(self, shares: Shares) -> Shares:
        """The shares that the format can express."""
        if self.total is None:
            return shares
        return np.array([whole_weights(row, self.total, self.most) for row in shares]) / self.total


def json_exporter(
    name: str,
    total: int,
    document: Callable[[Shares, Names], dict[str, Any]],
    read: Callable[[Any], ByName | None],
    labels: Callable[[Names], Names] | None = None,
    most: int | None = None,
) -> Exporter:
    """A format whose files are JSON documents, written with `labels(names)`: labels of addresses by default."""
    labels = labels or addressable
    write = lambda shares, names: json.dumps(document(shares, labels(names)), indent=2)
    return Exporter(name, ".json", total, write, read, labels, most)


def addressable(names: Names) -> Names:
    """Frontends and backends as labels of addresses, each kind by itself."""
    return Names(tuple(slugs(names.frontends)), tuple(slugs(names.backends)))


def whole_weights(row: Float[np.ndarray, " backends"], total: int = TOTAL_WEIGHT, most: int | None = None) -> list[int]:
    """Shares as whole numbers that sum to `total`: rounded down, what is left over goes to the largest remainders.

    Of more than `most` shares the largest are kept.

    **Raises:** `InputError` for a row that is no routing.
    """
    row = np.asarray(row, float)
    if not (np.all(np.isfinite(row)) and np.all(row >= 0) and np.sum(row) > 0):
        raise InputError(f"The shares {row.tolist()} are no routing: give numbers that are not negative and sum to 1.")
    if most is not None:
        row = np.where(np.argsort(np.argsort(-row, kind="stable")) < most, row, 0)
    exact = total * row / row.sum()
    floor = np.floor(exact + 1e-9).astype(int)
    for j in np.argsort(floor - exact, kind="stable")[: total - floor.sum()]:
        floor[j] += 1
    return floor.tolist()


def weights_of(row: Float[np.ndarray, " backends"], total: int, names: Sequence[str]) -> dict[str, int]:
    """The weights above 0 by name, from shares that are whole weights already."""
    whole = np.rint(total * row).astype(int).tolist()
    return {name: weight for name, weight in zip(names, whole, strict=True) if weight}


def slugs(names: Sequence[str], longest: int = 63) -> list[str]:
    """Names as labels of addresses (RFC 1035), all different: small letters, digits and dashes, a letter first.

    A name that is such a label already is never the label of another.
    """
    plain = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "region" for name in names]
    plain = [slug if slug[0].isalpha() else f"r-{slug}" for slug in plain]
    plain = [slug[: longest - 5].rstrip("-") if len(slug) > longest else slug for slug in plain]
    taken, found = set(plain), []
    for k, slug in enumerate(plain):
        if plain.count(slug) > 1:
            number = next(n for n in range(k, k + len(plain) + 1) if f"{slug}-{n}" not in taken)
            slug = f"{slug}-{number}"
            taken.add(slug)
        found.append(slug)
    return found


def shares_of(weights: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Pairs of name and weight as shares; weights of one name are added.

    **Raises:** `InputError` for weights that are none.
    """
    found: dict[str, float] = {}
    for name, weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f'the weight {weight!r} of "{name}" is none: give numbers that are not negative.')
        found[name] = found.get(name, 0.0) + float(weight)
    total = sum(found.values())
    if not total > 0:
        raise InputError(f"the weights of {', '.join(map(str, found)) or 'nothing'} sum to 0: give one above 0.")
    return {name: weight / total for name, weight in found.items()}


def items(document: Any, kind: str, group: str) -> list[Mapping[str, Any]]:
    """The objects of a kind in a Kubernetes document: one object, or a list of them."""
    if not isinstance(document, dict):
        return []
    found = document.get("items") if str(document.get("kind", "")).endswith("List") else [document]
    return [
        one
        for one in (found if isinstance(found, list) else [])
        if isinstance(one, dict) and one.get("kind") == kind and str(one.get("apiVersion", "")).startswith(group)
    ]
