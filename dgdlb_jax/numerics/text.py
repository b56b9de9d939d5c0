"""Texts from outside, such as names and paths, where people see them: on one line, of readable length, without control characters."""

import difflib
from collections import Counter
from collections.abc import Iterable

LONGEST_VALUE = 60
"""Letters of a value in a message."""


def printable(text: str, longest: int | None = None) -> str:
    """The text with everything that is not printable as an escape (`\\x1b`); beyond `longest` letters its middle is left out."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    if longest is None or len(text) <= longest:
        return text
    kept = longest - len(" ... ")
    return f"{text[: kept // 2]} ... {text[len(text) - (kept - kept // 2) :]}"


def clipped(text: str, longest: int = LONGEST_VALUE) -> str:
    """The text on one line, printable, shortened at its end to what a message can bear."""
    text = printable(" ".join(text[: 4 * longest].split()))
    return text if len(text) <= longest else text[: longest - 3] + "..."


def repeated(names: Iterable[str]) -> str | None:
    """The first name that stands there a second time; None where all differ."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that a misspelt one is nearest to; None when nothing is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about a misspelt word: `; did you mean known?`, or what else to say when nothing is near."""
    close = closest(word, known)
    return otherwise if close is None else f"; did you mean {close}?"


def plain_label(text: str) -> str:
    """The text as a label of a picture: a dollar sign begins a formula there."""
    return text.replace("$", r"\$")


def plain_cell(text: str) -> str:
    """The text as a cell of a table that spreadsheets open: what begins like a formula gets an apostrophe in front."""
    return f"'{text}" if text.lstrip("'")[:1] in FORMULA else text


def cell_text(cell: str) -> str:
    """What `plain_cell` was given."""
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'")[:1] in FORMULA else cell


FORMULA = ("=", "+", "-", "@")
"""What spreadsheets take for the beginning of a formula."""
