"""Checks of numbers that users give, with errors that say what was wanted."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

SHARES = frozenset({"fraction"})
THRESHOLDS = frozenset({"delta"})


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


def check_hparams(hparams: Mapping[str, float]) -> None:
    """Checks hyper-parameters: rates, but for those that are known to be something else by name.

    Raises:
      ValueError: one is negative, not a number, above 1 though a share of something, or infinite though
        not a threshold.
    """
    for name, value in hparams.items():
        if name in SHARES and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; wanted a number in [0, 1]")
        if name in THRESHOLDS and not value >= 0:
            raise ValueError(f"{name} is {value}; wanted a number of at least 0, or inf")
        if name not in THRESHOLDS and (not math.isfinite(value) or value < 0):
            raise ValueError(f"{name} is {value}; wanted a finite number, at least 0")
