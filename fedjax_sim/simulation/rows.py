"""Rows of metrics: from the infos of a block of rounds, and from evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.messages import balance, check_counts
from fedjax_sim.runtime.processes import on_first_process
from fedjax_sim.simulation.validation import EvaluationFn
from fedjax_sim.simulation.view import View, results_of

_OWN = ("train_loss", "finite")  # infos that are neither summed nor averaged over rounds
_NEEDED = ("train_loss", "examples", "slots")
_RESERVED = ("round", "seconds", "round_seconds", "messages_up", "messages_down")
_CUMULATIVE = "cumulative_"  # floats that are summed over rounds, as integers are


def first_row(sizes: dict[str, int]) -> dict[str, Any]:
    """Returns the row before the first round, without evaluations; for `sizes` see `check_sizes`."""
    counts = [f"{what}_{name}" for name in sizes for what in ("messages", "trips")]
    row = dict.fromkeys(("round", "examples", "slots", *counts), 0)
    return row | balance(row, sizes) | {"train_loss": None, "round_seconds": None}


def evaluated_names(row: dict[str, Any], sizes: dict[str, int]) -> set[str]:
    """Returns the names in a run's first recorded row that evaluations gave."""
    return row.keys() - first_row(sizes).keys() - {"seconds"}


def next_row(before: dict, infos: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, Any]:
    """Returns the row after a block of rounds; totals continue from the row `before`.

    Raises:
      ValueError: the rounds count other messages than those in `sizes`.
    """
    check_counts(infos, sizes)
    totals = {
        name: before.get(name, 0) + _total(info) if _adds_up(name, info) else _mean(info)
        for name, info in infos.items()
        if name not in _OWN
    }
    return {
        "round": before["round"] + len(infos["train_loss"]),
        "train_loss": _mean_loss(infos["train_loss"], infos["examples"]),
        **totals,
        **balance(totals, sizes),
    }


def first_bad_round(done: int, infos: dict[str, np.ndarray]) -> int | None:
    """Returns the first round of a block after which a parameter or the loss is not finite, or None."""
    bad = np.flatnonzero(~infos["finite"])
    return done + 1 + int(bad[0]) if bad.size else None


def evaluate_into(
    row: dict[str, Any], evaluators: Sequence[EvaluationFn], view: View, stop_at: float | None
) -> bool:
    """Adds the evaluations of a run to its row.

    Returns:
      True if all values of the row are finite; None, alone or in a list, is no value.

    Raises:
      ValueError: no evaluation gives the test accuracy that `stop_at` needs, or an evaluation gives one
        that is an array, or a name that the row already has.
    """
    own = {*row, *_RESERVED}
    for evaluation in evaluators:
        found = results_of(evaluation, view)
        taken = sorted(found.keys() & own)
        if taken:
            raise ValueError(
                f"an evaluation gives {taken[0]!r}, a column of every row; wanted another name"
            )
        # The first process's values, so that all processes agree on whether to go on.
        row |= on_first_process(lambda found=found: found)
    if stop_at is not None and "test_accuracy" not in row:
        raise ValueError(
            f"a target accuracy needs an evaluation named test_accuracy; there are {list(row)}"
        )
    if isinstance(row.get("test_accuracy"), list):
        raise ValueError(
            "an evaluation gives an array named test_accuracy, which targets, summaries and plots read "
            "as a number; wanted another name"
        )
    return all(map(_is_finite, row.values()))


def _is_finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return value is None or math.isfinite(value)


def _mean_loss(losses: np.ndarray, examples: np.ndarray) -> float | None:
    """Returns the mean loss over all examples of some rounds; None if there are no examples."""
    return float(np.average(losses, weights=examples)) if examples.any() else None


def _adds_up(name: str, info: np.ndarray) -> bool:
    """Returns whether an info is a count or a sum, rather than a rate or another level."""
    return name.startswith(_CUMULATIVE) or not np.issubdtype(info.dtype, np.floating)


def _mean(info: np.ndarray) -> float:
    """Returns the mean over rounds."""
    return float(info.mean(dtype=np.float64))


def _total(info: np.ndarray) -> int | float:
    """Returns the sum over rounds, exact for counts."""
    whole = np.issubdtype(info.dtype, np.integer)
    return int(info.sum(dtype=np.int64)) if whole else float(info.sum(dtype=np.float64))


def check_info(info: Mapping[str, Any]) -> None:
    """Checks that a round's info can become a row.

    Raises:
      ValueError: a value that every row needs is missing, another is not a real scalar, or its name is a
        column of every row.
    """
    lacking = [name for name in _NEEDED if name not in info]
    if lacking:
        raise ValueError(
            f"a round's info lacks {', '.join(lacking)}; wanted {', '.join(_NEEDED)} and the counts of "
            "messages, as fs.algorithms.round_info returns them"
        )
    for name, value in info.items():
        if name in _RESERVED or name.startswith("bytes_"):
            raise ValueError(
                f"a round's info holds {name!r}, a column of every row; wanted another name"
            )
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        if shape != () or not (jnp.issubdtype(dtype, jnp.bool_) or _is_real(dtype)):
            got = type(value).__name__ if dtype is None else f"{dtype} of shape {shape}"
            raise ValueError(
                f"a round's info holds {name!r} ({got}); wanted a scalar array of real numbers: keep "
                "other arrays in the state, or report their mean or sum"
            )


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
