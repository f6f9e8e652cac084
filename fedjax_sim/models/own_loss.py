"""Tasks from a user's own loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.task_checks import described
from fedjax_sim.core.types import Batch, Params, Ratio, Task
from fedjax_sim.models.kinds import arguments


def from_loss(
    init: Callable[[jax.Array], Params],
    loss: Callable[..., Any],
    metrics: Callable[[Params, Batch], dict[str, Any]] | None = None,
    predict: Callable[[Params, Batch], jax.Array] | None = None,
) -> Task:
    """Makes a task from a loss of each example.

    For example, linear regression:

        def loss(params, batch):
            return (batch["x"] @ params - batch["y"]) ** 2

        task = fs.models.from_loss(lambda key: jnp.zeros(3), loss)

    Args:
      init: `init(key) -> params`, a pytree of float arrays.
      loss: `loss(params, batch) -> [B]`, the loss of each example; `batch` holds the data's columns
        `[B, ...]`. For a mean over terms, such as words, it returns (summed loss `[B]`, number of terms
        `[B]`). A loss that also takes `key` gets a PRNG key in training and None in evaluation.
      metrics: `metrics(params, batch) -> {name: value}` without randomness. A value is `[B]`, of which
        evaluations show the mean over examples, or a pair (total `[B]`, count `[B]`), of which they
        divide the sums; see `Task.metrics` for arrays. "loss" is always there.
      predict: see `Task.predict`.

    Raises:
      ValueError: something is not a function, or `loss` takes other arguments. Loss and metrics raise it
        before any training if they return an average over the batch, or other shapes.
    """
    for name, function in (("init", init), ("loss", loss), ("metrics", metrics), ("predict", predict)):
        if not callable(function) and not (function is None and name in ("metrics", "predict")):
            raise ValueError(f"{name} is {described(function)}; wanted a function")
    takes_key = _takes_key(loss)

    def losses(params: Params, batch: Batch, key: jax.Array | None) -> Ratio:
        found = loss(params, batch, key=key) if takes_key else loss(params, batch)
        return _as_ratio("loss", found, batch)

    def all_metrics(params: Params, batch: Batch) -> dict[str, Ratio]:
        found = {} if metrics is None else metrics(params, batch)
        if not isinstance(found, Mapping):
            return found  # evaluations refuse it
        own = {name: _as_ratio(f"metric {name!r}", value, batch) for name, value in found.items()}
        return {"loss": losses(params, batch, None)} | own

    return Task(init, losses, all_metrics, predict=predict)


def _takes_key(loss: Callable[..., Any]) -> bool:
    """Returns whether a loss takes a key.

    Raises:
      ValueError: it takes other arguments than params, batch and key.
    """
    taken = arguments(loss)
    if taken is None:
        return False
    takes_key = "key" in taken.parameters
    try:
        taken.bind("params", "batch", **({"key": None} if takes_key else {}))
    except TypeError:
        raise ValueError(
            f"the loss takes ({', '.join(taken.parameters)}); wanted loss(params, batch), or "
            "loss(params, batch, key) if it is random"
        ) from None
    return takes_key


def _as_ratio(what: str, found: Any, batch: Batch) -> Ratio:
    """Returns the mean over examples as a ratio of sums; pairs are such already.

    Raises:
      ValueError: there is no value for each example.
    """
    if isinstance(found, tuple | list):
        return tuple(found)
    num_examples = len(next(iter(batch.values())))
    if getattr(found, "shape", ())[:1] != (num_examples,):
        raise ValueError(
            f"the {what} returned {described(found)} for a batch of {num_examples} examples; wanted a "
            f"value for each, [{num_examples}]: leave out the mean over examples, since batches are "
            "padded with rows that must not count"
        )
    return found, jnp.ones(num_examples)
