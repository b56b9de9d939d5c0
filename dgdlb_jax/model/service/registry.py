"""All service curves by name: fleet files, random topologies, sweeps and tests read them from here."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Array, Float

from dgdlb_jax.model.service.analytic import Exponential, Hyperbolic, Logarithmic, ManyServer, Power
from dgdlb_jax.model.service.base import AbstractService
from dgdlb_jax.numerics.registry import Registry, check_class

LOG_10 = math.log(10)
Backends = Float[Array, " backends"]
OfSize = Callable[[Backends, Backends], AbstractService]
"""From the nominal capacity (requests/s) and the time that a request alone takes (s) to a curve."""


@dataclass(frozen=True)
class Curve:
    """One kind of curve that a few numbers per backend describe.

    - `key`: its `kind` in a fleet file and, with `of_size`, the `curve` of random topologies in a sweep.
    - `maker`: the class. `parameters`: the keywords of its constructor that a fleet file gives, positive numbers, also the names of the
      fields that hold them; `optional`: those that may be left out.
    - `of_size`: how a curve with a nominal capacity and a service time is made; None if random topologies do without.
    """

    key: str
    maker: type[AbstractService]
    parameters: tuple[str, ...]
    optional: tuple[str, ...] = ()
    of_size: OfSize | None = None

    @property
    def may_be_left_out(self) -> tuple[str, ...]:
        """The parameters that a fleet file may leave out; `capacity` is one of them where the constructor takes it."""
        takes_capacity = "capacity" in inspect.signature(self.maker).parameters
        return (*self.optional, "capacity") if takes_capacity else self.optional


# Of exponent 1/2 the nominal capacity is 10 - 1 times the unit rate, of a logarithm log(10) times.
CURVES: Registry[Curve] = Registry(
    "service curve",
    (
        Curve("hyperbolic", Hyperbolic, ("max_rate", "half_load"), of_size=lambda c, time: Hyperbolic(c, c * time)),
        Curve("exponential", Exponential, ("max_rate", "scale"), of_size=lambda c, time: Exponential(c, c * time)),
        Curve(
            "power",
            Power,
            ("unit_rate", "scale", "exponent"),
            of_size=lambda c, time: Power(c / 9, c / 9 * time / 2, 0.5),
        ),
        Curve(
            "logarithmic",
            Logarithmic,
            ("unit_rate", "scale"),
            of_size=lambda c, time: Logarithmic(c / LOG_10, c / LOG_10 * time),
        ),
        Curve(
            "many-server",
            ManyServer,
            ("servers", "service_time"),
            ("sharpness",),
            of_size=lambda c, time: ManyServer(c * time, time),
        ),
    ),
    reserved=("measured", "mixture", "mixed", "many_server"),
)
"""Every curve by its key."""


def register_curve(
    key: str,
    maker: type[AbstractService],
    parameters: Sequence[str],
    *,
    optional: Sequence[str] = (),
    of_size: OfSize | None = None,
) -> None:
    """Make a service curve known by name: `kind = key` in a fleet file, `curve = key` in a sweep over random topologies.

    **Arguments:** as in `Curve`. Where the constructor takes `capacity`, a fleet file may state it as well.

    **Raises:** `InputError` for a key of a built-in curve, or a class that is no curve with these parameters.
    """
    check_class("register_curve", maker, AbstractService, [*parameters, *optional])
    CURVES.register(Curve(key, maker, tuple(parameters), tuple(optional), of_size))
