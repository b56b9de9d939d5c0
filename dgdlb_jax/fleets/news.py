"""How frontends get their reports: `[news]` of a fleet file, and the same in one line of a command."""

import re
from typing import Any

from dgdlb_jax.fleets.document import Section, shown
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.policies.estimates import Scraped

_SECONDS = ("interval", "offset", "late", "drift", "drift_period")
_NAMES = (*_SECONDS, "jitter", "lost", "seed")
_DRAWN = "random"  # offsets that are drawn
EXAMPLE = "interval=15,lost=0.1"


def read_news(document: Section, network: Network) -> Scraped | None:
    """The `[news]` of a file, None where it has none; numbers may be lists, one for each frontend.

    **Raises:** `InputError` that names file, line, field and remedy.
    """
    if "news" not in document:
        return None
    section = document.section("news")
    keys = {f"{name}_s" if name in _SECONDS else name: name for name in _NAMES}
    section.only(*keys)
    section.numbers("interval_s", network.frontends, minimum=None)  # complains if it is missing
    given = {name: _value(section, key, network) for key, name in keys.items() if key in section}
    return _unless_at_once(section.build_by({name: key for key, name in keys.items()}, Scraped, **given))


def parse_news(text: str) -> Scraped | None:
    """News as a command line says it: `interval=15,offset=random,lost=0.1`, or `none`; seconds, and parts of one.

    **Raises:** `InputError` with the names there are.
    """
    if text == "none":
        return None
    given: dict[str, Any] = {}
    for each in text.split(","):
        name, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"--news {text}: give NAME=VALUE, separated by commas, such as {EXAMPLE}, or none.")
        if name not in _NAMES:
            hint = did_you_mean(name, _NAMES, ".")
            raise InputError(f"--news {text}: there is no {name!r}: choose from {', '.join(_NAMES)}{hint}")
        if name in given:
            raise InputError(f"--news {text}: {name} stands there twice: leave one out.")
        given[name] = _parsed(text, name, value)
    if "interval" not in given:
        raise InputError(f"--news {text}: give the interval as well, in seconds, such as interval=15.")
    try:
        return _unless_at_once(Scraped(**given))
    except InputError as error:
        own_words = re.sub(r"\bScraped(\.|: )", "", str(error))
        raise InputError(f"--news {text}: {own_words}") from error


def _unless_at_once(news: Scraped) -> Scraped | None:
    """None for reports that are read all the time: then they are not late either."""
    return None if news.idle else news


def _value(section: Section, key: str, network: Network) -> Any:
    if key == "seed":
        value = section.number(key, minimum=None)
        return int(value) if float(value).is_integer() else value
    if key == "offset_s" and section.content[key] == _DRAWN:
        return None
    if key == "offset_s" and isinstance(section.content[key], str):
        raise section.error(key, f"is {shown(section.content[key])}", f'give seconds, or "{_DRAWN}".')
    one = not isinstance(section.content[key], list)
    return section.number(key, minimum=None) if one else section.numbers(key, network.frontends, minimum=None)


def _parsed(text: str, name: str, value: str) -> Any:
    if name == "offset" and value == _DRAWN:
        return None
    try:
        return int(value) if name == "seed" else float(value)
    except ValueError:
        known = f", or {_DRAWN}" if name == "offset" else ""
        raise InputError(
            f"--news {text}: {name} is {value!r}: give a {'whole ' * (name == 'seed')}number{known}."
        ) from None
