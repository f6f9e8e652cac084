"""Checks of a task, and of what its functions return for a batch."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fedjax_sim.core.types import Ratio, Task


def check_task(task: Any) -> None:
    """Checks that something is a task.

    Raises:
      ValueError: it is not, but a model, for example.
    """
    if not isinstance(task, Task):
        raise ValueError(
            f"the task is {described(task)}; wanted an fs.Task: "
            "fs.models.classifier(model, input_shape) makes one from a model, "
            "fs.models.from_loss(init, loss) from a loss"
        )


def refuse_state(task: Task, why: str) -> None:
    """Refuses a task whose model keeps state.

    Args:
      task: the task.
      why: what the state has no meaning for, as a clause.

    Raises:
      ValueError: the model keeps state.
    """
    if task.loss_and_state is not None:
        raise ValueError(
            f"the model keeps state beside its parameters, such as BatchNorm's statistics, and {why}; "
            "or normalise with GroupNorm or LayerNorm, which keep none"
        )


def check_loss(found: Any, num_examples: int) -> Ratio:
    """Returns what `Task.loss` returned for a batch.

    Args:
      found: the pair, as arrays or as shapes.
      num_examples: `B`.

    Raises:
      ValueError: it is not a pair (total `[B]`, count `[B]`), or the totals are not floats.
    """
    if _is_pair(found) and all(_shape(part) == (num_examples,) for part in found):
        total, count = found
        if jnp.issubdtype(total.dtype, jnp.floating):
            return total, count
    raise ValueError(
        f"the task's loss returned {described(found)} for a batch of {num_examples} examples; wanted a "
        f"pair (total float32[{num_examples}], count [{num_examples}]): the summed loss of each example "
        "and its number of terms, such as (losses, jnp.ones_like(losses)). Do not average over the "
        "batch: rows that pad it must not count"
    )


def check_metrics(found: Any, num_examples: int) -> dict[str, Ratio]:
    """Returns what `Task.metrics` returned for a batch.

    Args:
      found: name -> pair, as arrays or as shapes.
      num_examples: `B`.

    Raises:
      ValueError: it is not a dict, or a value is not a pair (total `[B, ...]`, count), where the count
        has the shape `[B]` or one that broadcasts to the total's.
    """
    if not isinstance(found, Mapping):
        raise ValueError(
            f"the task's metrics returned {described(found)}; wanted a dict of pairs, such as "
            '{"accuracy": (hits, jnp.ones_like(hits))}'
        )
    for name, pair in found.items():
        if not _is_pair(pair) or not _matches(*map(_shape, pair), num_examples):
            n = num_examples
            raise ValueError(
                f"the task's metric {name!r} is {described(pair)} for a batch of {n} examples; wanted a "
                f"pair (total [{n}], count [{n}]), whose sums over all examples are divided, such as "
                "(hits, jnp.ones_like(hits)). For a metric that is an array, the total is "
                f"[{n}, ...] and the count [{n}] or of a shape that broadcasts to the total's; an array "
                "of one entry is refused: write total[:, 0]"
            )
    return dict(found)


def described(value: Any) -> str:
    """Describes arrays by dtype and shape, in pairs and dicts as well, and other values by type."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {described(each)}' for name, each in value.items())}}}"
    shape = _shape(value)
    return f"a value of type {type(value).__name__}" if shape is None else f"{value.dtype}{list(shape)}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if hasattr(value, "shape") and hasattr(value, "dtype") else None


def _matches(total: tuple[int, ...] | None, count: tuple[int, ...] | None, num_examples: int) -> bool:
    if not total or not count or (total[0], count[0]) != (num_examples, num_examples):
        return False
    if total[1:] == (1,):
        return False
    # The count's axes are aligned with the total's last ones, as in division.
    pairs = zip(reversed(total[1:]), reversed(count[1:]), strict=False)
    return len(count) <= len(total) and all(c in (1, t) for t, c in pairs)
