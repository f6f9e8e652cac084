"""Plumbing that algorithms share; each algorithm's own mathematics stands in its own file."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.lanes import CohortSums


def client_weight(weighting: str) -> Callable[[jax.Array], jax.Array]:
    """A function from `n_k` to a client's weight: "examples" or "uniform"; zero without examples."""
    if weighting == "examples":
        return lambda size: size.astype(jnp.float32)
    if weighting == "uniform":
        return lambda size: (size > 0).astype(jnp.float32)
    raise ValueError(f"weighting is {weighting!r}; wanted 'examples' or 'uniform'")


def select_state(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the condition holds, else `old`: a cohort without any data changes nothing."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def round_info(sums: CohortSums) -> dict[str, jax.Array]:
    """What a round reports when its clients' metrics are `LossSums`."""
    total, count = sums.metrics["total"], sums.metrics["count"]
    return {
        "train_loss": total / jnp.maximum(count, 1),
        "examples": sums.metrics["examples"],
        "slots": sums.slots,
    }
