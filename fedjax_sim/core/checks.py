"""Checks of user-supplied names and numbers, with errors that say what was wanted."""

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_LARGEST_INT32 = 2**31 - 1
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


def choose(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Returns `known[name]`.

    Args:
      kind: what is being chosen, for the error message, such as `"dataset"`.
      name: the name asked for.
      known: every valid name, with the value it stands for.

    Raises:
      ValueError: `name` is not known; the message suggests the nearest name and lists all.
    """
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(str(name), known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise ValueError(f"unknown {kind} {name!r}{suggestion} Known: {', '.join(sorted(known))}.")


def check_count(name: str, value: Any) -> int:
    """Returns `value` as an int.

    Raises:
      ValueError: `value` is not a whole number from 1 to 2147483647, the largest int32.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 1 <= value <= _LARGEST_INT32 or value != math.floor(value):
        raise ValueError(f"{name} is {value!r}; wanted a whole number from 1 to {_LARGEST_INT32}")
    return int(value)


def check_seed(seed: Any) -> None:
    """Checks a seed of random draws.

    Raises:
      ValueError: `seed` is not an integer of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; wanted an integer of at least 0, for reproducible draws")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Checks a setting with a fixed set of values.

    Raises:
      ValueError: `value` is not in `known`.
    """
    if value not in known:
        raise ValueError(f"{name} is {value!r}; wanted {' or '.join(map(repr, known))}")


def as_float(name: str, value: Any) -> float:
    """Returns `value` as a float.

    Raises:
      ValueError: `value` is not a single number, or does not fit in a float.
    """
    if not _is_number(value):
        raise ValueError(f"{name} is {value}; wanted a number")
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):  # the last two from arrays of several
        raise ValueError(
            f"{name} is {str(value)[:40]}; wanted a single number that fits in a float"
        ) from None


def check_rates(rates: Mapping[str, float]) -> None:
    """Checks hyper-parameters that are rates.

    Raises:
      ValueError: a rate is negative, not a number, or beyond the largest finite float32.
    """
    for name, value in rates.items():
        if not _is_number(value) or not 0 <= as_float(name, value) < math.inf:
            raise ValueError(f"{name} is {value!r}; wanted a finite number, at least 0")
        if value > _LARGEST_FLOAT32:
            raise ValueError(
                f"{name} is {value}; wanted at most {_LARGEST_FLOAT32:.3g}, the largest float32"
            )


def check_thresholds(thresholds: Mapping[str, float]) -> None:
    """Checks hyper-parameters that are upper limits, which may be infinite.

    Raises:
      ValueError: a limit is negative or not a number.
    """
    for name, value in thresholds.items():
        if not _is_number(value) or not value >= 0:
            raise ValueError(f"{name} is {value}; wanted a number of at least 0, or inf")


def check_shares(shares: Mapping[str, float]) -> None:
    """Checks hyper-parameters that are fractions.

    Raises:
      ValueError: a fraction is not in [0, 1].
    """
    for name, value in shares.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; wanted a number in [0, 1]")


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, bool)  # also one-element arrays
