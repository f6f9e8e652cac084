"""Multiplicative grids of learning rates, as searched in the FedAvg paper."""

import itertools
import math
from collections.abc import Sequence

_PER_DECADE = (3, 6)  # the paper's resolutions, 10^(1/3) and 10^(1/6)
_MOST_PER_DECADE = 100  # on finer grids, neighbours would agree to three digits
_MOST_RATES = 1000


def rate_grid(low: float, high: float, per_decade: int) -> list[float]:
    """Returns the rates `10 ** (k / per_decade)`, k whole, from `low` to `high`, to three digits.

    Raises:
      ValueError: a bound is not positive and finite, the bounds are out of order, `per_decade` is not a
        whole number from 1 to 100, or no rate or more than 1,000 rates lie between the bounds.
    """
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low <= high):
        raise ValueError(f"the grid goes from {low} to {high}; wanted 0 < first <= last, both finite")
    if not 1 <= per_decade <= _MOST_PER_DECADE or per_decade != int(per_decade):
        raise ValueError(
            f"the grid has {per_decade} rates per decade; wanted a whole number from 1 to "
            f"{_MOST_PER_DECADE}, since rates are rounded to three digits"
        )
    first = math.ceil(per_decade * math.log10(low) - _ROUNDING)
    last = math.floor(per_decade * math.log10(high) + _ROUNDING)
    if first > last:
        raise ValueError(f"no rate 10^(k/{per_decade}) lies from {low:g} to {high:g}; widen the grid")
    if last - first >= _MOST_RATES:
        raise ValueError(
            f"the grid from {low:g} to {high:g} has {last - first + 1:,} rates; wanted at most "
            f"{_MOST_RATES:,}: narrow it, or take fewer rates per decade"
        )
    return [_rate(k, per_decade) for k in range(first, last + 1)]


# Rounding to three digits moves a rate off the grid by at most 0.5 %, which is this much of a step.
_ROUNDING = 0.02


def resolution(rates: Sequence[float]) -> int:
    """Returns the paper's resolution, in rates per decade, that is nearest to the grid's steps."""
    rates = sorted(rate for rate in rates if rate > 0)
    if len(rates) < 2:
        return _PER_DECADE[0]
    steps = [math.log10(b / a) for a, b in itertools.pairwise(rates)]
    return min(_PER_DECADE, key=lambda per_decade: abs(1 / per_decade - min(steps)))


def neighbour(rate: float, per_decade: int, direction: int) -> float:
    """Returns the next rate on the paper's grid, at least half a step up (`direction` 1) or down (-1).

    A rate halfway between two grid points, such as 1.47 with three per decade, lies on the same grid
    shifted by half a step, and so does its neighbour.
    """
    position = per_decade * math.log10(rate)
    shift = 0.5 if abs(position % 1 - 0.5) < _ROUNDING else 0.0
    if direction > 0:
        return _rate(math.ceil(position - shift + 0.5 - _ROUNDING) + shift, per_decade)
    return _rate(math.floor(position - shift - 0.5 + _ROUNDING) + shift, per_decade)


def _rate(k: float, per_decade: int) -> float:
    return float(f"{10 ** (k / per_decade):.3g}")
