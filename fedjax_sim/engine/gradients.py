"""Gradients of ONE client's loss on a batch, and how its examples are cut into batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.task_checks import check_loss, described
from fedjax_sim.core.types import Batch, Params, Task, Variables

# An infinite batch is processed in large pieces, where a matrix product runs near its peak; smaller
# pieces take the rest, so that little is wasted on a small client.
PIECES = (200, 50, 10)


class LossSums(NamedTuple):
    """Sums over examples, `[]` each: of losses, of loss terms, and of examples."""

    total: jax.Array
    count: jax.Array
    examples: jax.Array


def no_losses() -> LossSums:
    """Returns zero sums."""
    zero = jnp.zeros((), jnp.float32)
    return LossSums(zero, zero, jnp.zeros((), jnp.int32))


def mean_gradient(
    task: Task, params: Params, batch: Batch, real: jax.Array, key: jax.Array
) -> tuple[Params, LossSums]:
    """Returns the gradient of a batch's mean loss and the batch's sums; see `sum_gradient`."""
    gradient, losses = sum_gradient(task, params, batch, real, key)
    scaled = trees.scale(gradient, 1 / jnp.maximum(losses.count, 1) + _zero_after(gradient))
    if isinstance(gradient, Variables):
        scaled = scaled._replace(state=gradient.state)
    return scaled, losses


def sum_gradient(
    task: Task, params: Params, batch: Batch, real: jax.Array, key: jax.Array
) -> tuple[Params, LossSums]:
    """Returns the gradient of a batch's summed loss and the batch's sums.

    Args:
      task: the model and its loss.
      params: the parameters.
      batch: column name -> `[B, ...]`.
      real: `[B]` bool; other rows are padding and do not count.
      key: PRNG key for the task.

    Returns:
      The gradient, shaped like `params`, and the sums over the real rows; for the state of a model, see
      `Variables`.
    """
    if task.loss_and_state is None:
        return jax.grad(lambda params: loss_sums(task, params, batch, real, key), has_aux=True)(params)

    if not isinstance(params, Variables):
        raise ValueError(
            f"the task has loss_and_state, but its parameters are {described(params)}; wanted "
            "fs.Variables(params, state)"
        )

    def with_state(params: Variables):
        ratio, state = task.loss_and_state(params, batch, real, key)
        total, losses = _sums(ratio, real)
        return total, (losses, state)

    gradient, (losses, state) = jax.grad(with_state, has_aux=True)(params)
    return gradient._replace(state=trees.subtract(params.state, state)), losses


def loss_sums(
    task: Task, params: Params, batch: Batch, real: jax.Array, key: jax.Array
) -> tuple[jax.Array, LossSums]:
    """Returns the summed loss of a batch's real rows in its own dtype, and the batch's sums.

    Raises:
      ValueError: the task's loss returns something else than a total and a count for each row.
    """
    return _sums(task.loss(params, batch, key), real)


def _sums(ratio: Any, real: jax.Array) -> tuple[jax.Array, LossSums]:
    total, count = check_loss(ratio, len(real))
    total, count = (jnp.sum(jnp.where(real, column, 0)) for column in (total, count))
    losses = LossSums(
        total.astype(jnp.float32), count.astype(jnp.float32), jnp.sum(real, dtype=jnp.int32)
    )
    return total, losses


def _zero_after(tree: Any) -> jax.Array:
    """Returns a zero that depends on every leaf.

    An update that uses it starts after the last read of the parameters. Otherwise XLA copies them at
    every step, lest the update of one layer overtake the backward pass through it.
    """
    total = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(tree))
    return 0 * jnp.where(jnp.isfinite(total), total, 0)


def batch_slots(
    i: jax.Array, width: int, size: jax.Array, first: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns the positions of one batch among a client's examples.

    Args:
      i: `[]` int32, index of the batch.
      width: `B`.
      size: `[]` int32, `n_k`.
      first: position where batch 0 begins.

    Returns:
      Positions `[B]` int32, and `[B]` bool, whether each is real. Positions past the end repeat the
      last one, so they gather a valid row of the same client.
    """
    slots = first + i * width + jnp.arange(width, dtype=jnp.int32)
    return jnp.clip(slots, 0, jnp.maximum(size - 1, 0)), slots < size


def count_pieces(size: jax.Array) -> list[jax.Array]:
    """Returns a client's number of pieces of each width; only the last, narrowest one may be short."""
    counts = []
    for width in PIECES:
        counts.append(ceil_div(size, width) if width == PIECES[-1] else size // width)
        size = jnp.maximum(size - width * counts[-1], 0)
    return counts


def ceil_div(a: jax.Array, b: int) -> jax.Array:
    return (a + (b - 1)) // b
