"""Where cities and cloud regions lie, and by how much later the sun is over them."""

from functools import cache
from importlib import resources

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.words import normal
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.model.cities import CITIES
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import closest

_SECONDS_PER_DEGREE = 240.0  # of longitude: the sun goes round in a day


@cache
def _regions() -> dict[str, float]:
    table = Table.read(resources.files("dgdlb_jax") / "data" / "tables", "cloud_regions.csv", "longitudes")
    return dict(zip((row.cells["region"] for row in table.rows), table.numbers("longitude", minimum=-180), strict=True))


def longitude(place: str) -> float:
    """Degrees east of a city (`model.cities`), or of a region of AWS, Azure or Google Cloud as they call it.

    **Raises:** `InputError` for any other place.
    """
    cities = {normal(city): east for city, (_, east) in CITIES.items()}
    plain = place.strip().lower()
    for known, name in ((cities, normal(place)), (_regions(), plain), (_regions(), plain.replace(" ", ""))):
        if name in known:
            return known[name]
    near = closest(clipped(place), [*CITIES, *_regions()], cutoff=0.7)
    hint = "" if near is None else f'did you mean "{near}"? '
    raise InputError(
        f'Where "{clipped(place)}" lies is not known, so no day can be shifted by longitude: {hint}Known are regions of AWS, Azure and '
        f"Google Cloud as they call them (us-east-1, eastus, us-east1) and cities ({listed(sorted(CITIES))}); or give seconds for each "
        "frontend."
    )


def sun_shifts(places: tuple[str, ...], width: float) -> list[float]:
    """Seconds by which the sun is later than over the first place, the shorter way round, in whole bins of `width` seconds."""
    first, *_ = found = [longitude(place) for place in places]
    west = [(first - east + 180) % 360 - 180 for east in found]
    return [round(degrees * _SECONDS_PER_DEGREE / width) * width for degrees in west]
