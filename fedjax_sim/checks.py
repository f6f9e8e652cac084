"""Checks of numbers that users give, with errors that say what was wanted."""

import math
import numbers
from collections.abc import Mapping
from typing import Any


def check_count(name: str, value: Any) -> int:
    """`value` as an int.

    Raises:
      ValueError: it is not a whole number from 1 to what an int32 holds.
    """
    if isinstance(value, bool) or not 1 <= value < 2**31 or value != math.floor(value):
        raise ValueError(f"{name} is {value}; wanted a whole number, at least 1")
    return int(value)


def check_seed(seed: Any) -> None:
    """Checks what random draws start from.

    Raises:
      ValueError: it is not an integer of at least 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; wanted an integer of at least 0, so that the draws repeat")


def check_rates(rates: Mapping[str, float]) -> None:
    """Checks hyper-parameters that are rates.

    Raises:
      ValueError: one is negative or not a finite number.
    """
    for name, value in rates.items():
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value}; wanted a finite number, at least 0")
