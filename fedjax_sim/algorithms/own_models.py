"""Learners that keep their own models: what dynamic averaging and gossip share."""

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Params


@jax.jit
def mean_of(learners: Params) -> Params:
    """Returns the mean of models `[m, ...]`."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0, dtype=leaf.dtype), learners)


def stack_models(initial: Sequence[Params] | None, m: int, model: Params) -> Params:
    """Returns `m` models as `[m, ...]`: the initial ones, or copies of `model` if there are none."""
    if initial is None:
        return jax.tree.map(lambda w: jnp.broadcast_to(w, (m, *w.shape)), model)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *initial)


def check_round(m: int, steps: int, slots: int) -> None:
    """Refuses a round whose examples an int32 cannot count.

    Raises:
      ValueError: there are too many.
    """
    if m * steps * slots >= 2**31:
        raise ValueError(
            f"a round of {m} learners x {steps} steps x {slots} examples overflows its int32 count; "
            "wanted fewer than 2**31 examples"
        )


def check_models(models: Sequence[Params] | None, m: int, like: Params) -> None:
    """Checks initial models, if there are any.

    Raises:
      ValueError: there are not `m`, or their shapes differ from those of `like`.
    """
    if models is None:
        return
    if len(models) != m:
        raise ValueError(f"initial has {len(models)} models for {m} learners; wanted one for each")

    def arrays(model):
        leaves = jax.tree.leaves(model)
        return [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]

    for i, model in enumerate(models):
        if jax.tree.structure(model) != jax.tree.structure(like) or arrays(model) != arrays(like):
            raise ValueError(
                f"the initial model of learner {i} holds the arrays {arrays(model)}, but the task's "
                f"model holds {arrays(like)}; wanted the same structure, shapes and dtypes"
            )


def digest_of(models: Sequence[Params] | None) -> str | None:
    """Returns a digest of initial models for an algorithm's settings, None if there are none."""
    if models is None:
        return None
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(list(models)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
