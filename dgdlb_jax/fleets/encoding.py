"""Bytes of a text file as text: UTF-8, UTF-16 and UTF-32 by their marks, and Windows-1252 where it can be nothing else."""

import codecs
import re

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import clipped

_MARKS = {  # UTF-32 first, whose mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_NAMES = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}
_OTHERS = {
    b"PK\x03\x04": "a workbook or an archive",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old workbook",
    b"\x1f\x8b": "a compressed file (gzip)",
    b"\x28\xb5\x2f\xfd": "a compressed file (zstd)",
    b"%PDF": "a PDF file",
}
"""How files begin that hold tables and are no text."""
# Control characters, and the last two letters of Windows-1252: rare ones, whose bytes FE and FF are common in what is no text.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9fþÿ]")
_FOREIGN = re.compile(r"\w*[^\x00-\x7f]\w*")


def decoded(data: bytes, name: str) -> tuple[str, str]:
    """The text in the bytes of a file, its lines ended by `\\n`, and a sentence on what was assumed to read it, or none.

    A file that is no UTF-8 and has no mark is read as Windows-1252, as spreadsheets in Western Europe save, if all of its bytes are
    letters there and none of them belongs to a letter in UTF-8: such a file is UTF-8 that was damaged.

    **Raises:** `InputError` for anything else, which is no text.
    """
    for begin, what in _OTHERS.items():
        if data.startswith(begin):
            raise InputError(f"{name} is {what} and no text: save what is in it as CSV.")
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text, note = data[len(mark) :].decode(encoding), ""
    except UnicodeDecodeError as error:
        if mark or (found := _western(data)) is None:
            what = _NAMES[encoding]
            raise InputError(f"{name} is not a text file in {what} (byte {error.start}): save it as UTF-8.") from error
        text, note = found, _assumed(found, name)
    if (at := text.find("\0")) >= 0:
        raise InputError(f"{name} is not a text file in UTF-8 (character {at} is a zero): save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def _western(data: bytes) -> str | None:
    """The text in Windows-1252, where it is plausible."""
    if re.search("[\x80-\ud7ff\ue000-\U0010ffff]", data.decode("utf-8", "surrogateescape")):
        return None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return None if _NO_TEXT.search(text) else text


def _assumed(text: str, name: str) -> str:
    word = _FOREIGN.search(text)
    shown = "" if word is None else f', so check "{clipped(word[0])}"'
    return f"{name} is not in UTF-8 and is read as Windows-1252{shown}."
