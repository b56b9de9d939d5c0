"""What a user tells because no file says it, and whether anything asked for it."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to what files leave open. Whoever gives one that nothing asks for expects an effect that it does not have, so readers
    call `use` where an answer counts, and whoever took the answers looks at `unused` in the end. Copies share what was used."""

    used: set[str] = field(default_factory=set, compare=False, repr=False)

    def use(self, name: str) -> Any:
        """An answer, at a place where it counts; None or empty where it was not given."""
        self.used.add(name)
        return getattr(self, name)

    @property
    def unused(self) -> tuple[str, ...]:
        """The answers that were given, and that nothing used so far."""
        given = (one.name for one in fields(self) if one.compare and getattr(self, one.name))
        return tuple(name for name in given if name not in self.used)
