"""The results of a cohort: sums of what clients send, and rows that are written in place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.types import ClientOutput
from fedjax_sim.engine.collectives import CohortResult


class WeightedSum(NamedTuple):
    """A message for a weighted mean: `total` is a pytree of floats, `weight` is `[]` float32."""

    total: Any
    weight: jax.Array

    def mean(self) -> Any:
        """Returns `total / weight`, or zeros if the weight is zero."""
        return trees.scale(self.total, 1 / jnp.maximum(self.weight, 1e-30))


def weigh(update: Any, weight: jax.Array) -> WeightedSum:
    """Returns one client's message: its update, with its weight in the cohort's mean.

    Args:
      update: a pytree of floats.
      weight: `[]`, at least 0, and 0 for a client without data; an update with weight zero is dropped,
        even if it is NaN.

    Raises:
      ValueError: `update` holds integers, which a weight would round or wrap.
    """
    whole = [leaf.dtype for leaf in jax.tree.leaves(update) if not _is_float(leaf)]
    if whole:
        raise ValueError(
            f"a client's update holds {whole[0]}; wanted floats, as the client's weight multiplies it: "
            "put integers into the message itself, which is summed unweighted"
        )
    weight = jnp.asarray(weight, jnp.float32)
    # `where`, because an empty client's update may be NaN, and zero times NaN is NaN.
    total = jax.tree.map(lambda u: jnp.where(weight > 0, weight * u, 0).astype(u.dtype), update)
    return WeightedSum(total, weight)


def present(output: ClientOutput, there: jax.Array | None) -> ClientOutput:
    """Returns a client's output, with zeros if it is not `there`; None means that it is."""
    if there is None:
        return output

    def if_there(leaf):
        return jnp.where(there, leaf, jnp.zeros_like(leaf))

    return output._replace(
        message=jax.tree.map(if_there, output.message),
        metrics=jax.tree.map(if_there, output.metrics),
    )


def nothing(output: ClientOutput, own: Any, num_clients: int) -> CohortResult:
    """Returns the result before any client has sent anything.

    Args:
      output: one client's output; only shapes and dtypes are used.
      own: `[K, ...]`, the client states.
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
    """Adds the output of one client, or of a chunk of clients, to the result.

    Args:
      result: the result so far.
      output: the output of one client, or of many with a leading axis.
      position: `[]` or `[L]` int32, positions in the cohort; those out of range write no row.
      slots: `[]` int32, the work executed.
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
    """Refuses a client state that differs in form from the one received.

    Raises:
      ValueError: the structure, a shape or a dtype differs.
    """
    got, wanted = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (after, before)
    )
    if got != wanted:
        raise ValueError(f"a client received state {wanted} but returned {got}; wanted the same shapes")


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
