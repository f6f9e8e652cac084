"""Clipping of updates in the L2 norm, to a given norm or to an adaptive one.

G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially private learning with adaptive
clipping", NeurIPS 2021, https://arxiv.org/abs/1905.03871
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import trees
from fedjax_sim.core.checks import as_float, check_rates
from fedjax_sim.core.stage import Stage


def clip(norm: float, *, adaptive: float | None = None, rate: float = 0.2) -> Stage:
    """Scales a client's update down to an L2 norm of at most `C`, over all arrays together.

    With `adaptive`, `C` starts at `norm` and follows a quantile of the norms:
    `C <- C * exp(-rate * (b - adaptive))`, where b is the share of the round's clients whose norm is at
    most C. Clients without weight do not count. Each client then sends one bit more and receives C, four
    bytes. The paper adds noise to b; here b is exact, so it leaks a little beside `gaussian`.

    Args:
      norm: `C`, above 0. It may vary without recompiling, as "clip_norm".
      adaptive: the quantile, between 0 and 1; None for a fixed norm. It may vary, as "clip_quantile".
      rate: the learning rate of log C. It may vary, as "clip_rate".

    Raises:
      ValueError: a value is out of range.
    """
    hparams = {"clip_norm": as_float("norm", norm)}
    if adaptive is not None:
        hparams |= {"clip_quantile": as_float("adaptive", adaptive), "clip_rate": as_float("rate", rate)}
    _check(hparams)
    if adaptive is None:

        def limit(state, hparams):
            return hparams["clip_norm"]

        def encode(state, hparams, own, update, key):
            return clipped(update, l2_norm(update), hparams["clip_norm"]), own, ()

        return Stage("clip", {}, hparams, _check, encode=encode, bound=limit)

    def init(hparams):
        return jnp.asarray(hparams["clip_norm"], jnp.float32)

    def encode(most, hparams, own, update, key):
        norm = l2_norm(update)
        return clipped(update, norm, most), own, norm <= most

    def advance(most, hparams, within, count):
        share = within / jnp.maximum(count, 1)
        moved = most * jnp.exp(-hparams["clip_rate"] * (share - hparams["clip_quantile"]))
        return jnp.where(count > 0, moved, most), {"clip_norm": most}

    return Stage(
        "clip",
        {"adaptive": True},
        hparams,
        _check,
        init=init,
        encode=encode,
        advance=advance,
        bound=lambda most, hparams: most,
    )


def l2_norm(tree: Any) -> jax.Array:
    """Returns the L2 norm over all arrays, `[]` float32, without overflow of squares."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    most = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]))
    scale = jnp.where(most == 0, 1.0, most)  # NaN stays
    return scale * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / scale)) for leaf in leaves))


def clipped(update: Any, norm: jax.Array, most: jax.Array) -> Any:
    """Returns `update`, of this norm, scaled down to a norm of at most `most`."""
    return trees.scale(update, jnp.minimum(1.0, most / jnp.maximum(norm, 1e-30)))


def _check(hparams: Mapping[str, float]) -> None:
    if not hparams["clip_norm"] > 0:
        raise ValueError(f"clip_norm is {hparams['clip_norm']}; wanted a number above 0")
    quantile = hparams.get("clip_quantile", 0.5)
    if not 0 < quantile < 1:
        raise ValueError(f"clip_quantile is {quantile}; wanted a number between 0 and 1")
    check_rates({name: value for name, value in hparams.items() if name.startswith("clip_")})
