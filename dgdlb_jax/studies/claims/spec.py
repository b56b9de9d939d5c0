"""What a claim says and which sweeps show it: the files in `dgdlb_jax/data/claims`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from dgdlb_jax.fleets.document import parse
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import closest, repeated
from dgdlb_jax.studies.sweep import Spec, read_spec

SIZES = ("quick", "full")
"""How much is computed: a look in a minute or two, or hundreds of topologies for each claim."""


@dataclass(frozen=True)
class Claim:
    """A claim of the abstract.

    - `key`: its number. `title`: a few words. `statement`: what is claimed.
    - `sweeps`: name -> the specification whose results the judge reads.
    """

    key: str
    title: str
    statement: str
    sweeps: dict[str, Spec]


def read_claims(keys: Sequence[str] | None = None, size: str = "quick") -> list[Claim]:
    """The claims, or some of them, at a size.

    **Arguments:** `keys`: numbers or words of titles (all by default); `size`: one of `SIZES`.

    **Raises:** `InputError` for an unknown claim or size.
    """
    if size not in SIZES:
        raise InputError(f"size={size!r}: choose from {', '.join(SIZES)}.")
    files = {file.name.split("-")[0]: file for file in _folder().iterdir() if file.name.endswith(".toml")}
    documents = {key: parse(files[key]).content for key in sorted(files)}
    chosen = [_find(key, documents) for key in keys] if keys else list(documents)
    if (twice := repeated(chosen)) is not None:
        raise InputError(f"Claim {twice} ({documents[twice]['title']}) is asked for twice: leave one out.")
    return [_claim(key, documents[key], size) for key in chosen]


def _find(word: str, documents: Mapping[str, Mapping[str, Any]]) -> str:
    if word in documents:
        return word
    titles = {document["title"]: key for key, document in documents.items()}
    found = [key for title, key in titles.items() if word.lower() in title]
    if len(found) == 1:
        return found[0]
    close = closest(word.lower(), titles)
    known = ", ".join(f"{key} ({title})" for title, key in titles.items())
    hint = "." if close is None else f"; did you mean {titles[close]}?"
    raise InputError(f"No claim is called {word!r}: choose from {known}{hint}")


def _claim(key: str, document: Mapping[str, Any], size: str) -> Claim:
    changes = document.get("quick", {}) if size == "quick" else {}
    sweeps = {}
    for part, spec in document["sweeps"].items():
        if part in changes.get("skip", ()):
            continue
        named = {"name": f"claim-{key}-{part}-{size}", "description": document["statement"]}
        sweeps[part] = read_spec(_merged({**named, **spec}, changes.get(part, {})))
    return Claim(key, document["title"], document["statement"], sweeps)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _folder():
    return resources.files("dgdlb_jax") / "data" / "claims"
