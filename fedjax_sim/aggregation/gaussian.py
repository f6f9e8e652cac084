"""Gaussian noise on the sum of clipped updates, the mechanism of differential privacy for clients.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning differentially private recurrent language
models", ICLR 2018, https://arxiv.org/abs/1710.06963
"""

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import as_float, check_rates
from fedjax_sim.core.stage import Stage


def gaussian(noise_multiplier: float) -> Stage:
    """Adds noise of standard deviation `z * C` to the sum of the updates, before it becomes their mean.

    `C` is the norm of the `clip` before it. The server adds the noise, and the mean divides by the
    number of clients with data. This stage computes no privacy budget.

    Args:
      noise_multiplier: `z`, at least 0. It may vary without recompiling.

    Raises:
      ValueError: the multiplier is out of range.
    """
    hparams = {"noise_multiplier": as_float("noise_multiplier", noise_multiplier)}
    check_rates(hparams)

    def finish(total, bound, hparams, key):
        leaves, structure = jax.tree.flatten(total)
        std = hparams["noise_multiplier"] * bound

        def noisy(i, leaf):
            drawn = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32)
            return leaf + (std * drawn).astype(leaf.dtype)

        return jax.tree.unflatten(structure, [noisy(i, leaf) for i, leaf in enumerate(leaves)])

    return Stage("gaussian", {}, hparams, finish=finish)
