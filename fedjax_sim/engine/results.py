"""What clients send, put together: sums, and rows that are written in place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import ClientOutput
from fedjax_sim.engine.collectives import CohortResult


class WeightedSum(NamedTuple):
    """A message that makes a weighted mean: `total` is a pytree of floats, `weight` `[]` float32."""

    total: Any
    weight: jax.Array

    def mean(self) -> Any:
        """Returns `total / weight`; zeros where the weight is zero."""
        return trees.scale(self.total, 1 / jnp.maximum(self.weight, 1e-30))


def weigh(update: Any, weight: jax.Array) -> WeightedSum:
    """Returns the message of one client whose update has a weight in the cohort's mean.

    Args:
      update: a pytree of floats.
      weight: `[]`, at least 0; the update of a client with weight zero is dropped, even if it is NaN.

    Raises:
      ValueError: the update holds integers, which a weight would round or wrap.
    """
    whole = [leaf.dtype for leaf in jax.tree.leaves(update) if not _is_float(leaf)]
    if whole:
        raise ValueError(
            f"a client's update holds {whole[0]}, and updates are multiplied by the client's weight; "
            "wanted floats: put integers into the message itself, which is summed as it is"
        )
    weight = weight.astype(jnp.float32)
    # Not by the weight alone: zero times what an empty client divides by zero is NaN.
    total = jax.tree.map(lambda u: jnp.where(weight > 0, weight * u, 0).astype(u.dtype), update)
    return WeightedSum(total, weight)


def present(output: ClientOutput, there: jax.Array | None) -> ClientOutput:
    """Returns what a client sends, zeros if it is not `there`; None stands for one that is."""
    if there is None:
        return output

    def if_there(leaf):
        return jnp.where(there, leaf, jnp.zeros_like(leaf))

    return output._replace(
        message=jax.tree.map(if_there, output.message),
        metrics=jax.tree.map(if_there, output.metrics),
    )


def nothing(output: ClientOutput, own: Any, num_clients: int) -> CohortResult:
    """Returns the result before any client has sent something.

    Args:
      output: of one client, shapes and dtypes alone.
      own: `[K, ...]`, the clients' memory.
      num_clients: `K`.
    """
    rows = jax.tree.map(lambda leaf: jnp.zeros((num_clients, *leaf.shape), leaf.dtype), output.row)
    remembers = bool(jax.tree.leaves(own))
    return CohortResult(
        message=trees.zeros_like(output.message),
        metrics=trees.zeros_like(output.metrics),
        own=own,
        rows=rows,
        slots=jnp.zeros((), jnp.int32),
        trained=jnp.zeros((num_clients,), jnp.int32) if remembers else (),
    )


def collect(
    result: CohortResult, output: ClientOutput, position: jax.Array, slots: jax.Array
) -> CohortResult:
    """Adds what one client or a chunk of them sends.

    Args:
      result: so far.
      output: of one client, or of many with a leading axis.
      position: `[]` or `[L]` int32, their places in the cohort; those out of range write no row.
      slots: `[]` int32, the work it took.
    """
    sums = (output.message, output.metrics)
    if position.ndim:
        sums = jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), sums)
    message, metrics = trees.add((result.message, result.metrics), sums)

    def write(rows, new):
        return rows.at[position].set(new, mode="drop")

    return CohortResult(
        message=message,
        metrics=metrics,
        own=jax.tree.map(write, result.own, output.own),
        rows=jax.tree.map(write, result.rows, output.row),
        slots=result.slots + slots,
        trained=jax.tree.map(lambda trained: write(trained, 1), result.trained),
    )


def check_own(before: Any, after: Any) -> None:
    """Refuses a client function that returns other memory than it was given.

    Raises:
      ValueError: structure, shape or dtype of the memory differs.
    """
    got, wanted = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (after, before)
    )
    if got != wanted:
        raise ValueError(f"a client's memory was {wanted}, and it returns {got}; wanted the same shapes")


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
