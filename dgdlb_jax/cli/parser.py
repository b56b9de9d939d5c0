"""The parser of the command line: what is wrong in one sentence, no value lost in silence, options told from those of other commands."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from dgdlb_jax.numerics.text import clipped, closest


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else does, without the usage before it; so do the commands' parsers.

    An option that may be repeated has `action="append"`; one that takes a single value is refused when it is given twice, as one of the
    values would be lost. `above`: the parser of which this one is a command.
    """

    def __init__(self, *args: Any, above: "Parser | None" = None, **keywords: Any):
        super().__init__(*args, **keywords)
        self._above = above
        self._commands: Mapping[str, Parser] = {}
        self.given: set[str] = set()
        self.register("action", None, _Once)  # of options that name no action

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help says what can be given.\n")

    def add_commands(self, **keywords: Any) -> Any:
        """Where commands add parsers of their own."""
        made: Any = partial(Parser, above=self)
        commands = self.add_subparsers(parser_class=made, **keywords)
        self._commands = commands.choices
        return commands

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As usual, but what is not known is refused here, where it is known which command it was given to."""
        self.given = set()
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return found, unknown

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        if option is None:
            self.error(f"{clipped(unknown[0])!r} is one argument too many")
        others = [place for place, one in self._family() if one is not self and option in one.flags]
        near = closest(option, self.flags)
        where = f": it belongs to {', '.join(others)}" if others else "" if near is None else f" (did you mean {near}?)"
        self.error(f"there is no option {clipped(option)} here{where}")

    def _family(self) -> "Iterator[tuple[str, Parser]]":
        """`dgdlb` and all its commands, with the words that name them."""
        root = self._above or self
        yield f"{root.prog}, before the command", root
        yield from ((one.prog, one) for one in root._commands.values())

    @property
    def flags(self) -> list[str]:
        """All its options."""
        return list(self._option_string_actions)


class _Once(argparse._StoreAction):
    """An option that takes one value, or one list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if option_string is not None and self.dest in parser.given:
            several = "," in str(self.metavar)
            keep = f"put all of it into one, {self.option_strings[0]} {self.metavar}" if several else "keep one of them"
            raise argparse.ArgumentError(self, f"is given twice, {keep}")
        parser.given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)
