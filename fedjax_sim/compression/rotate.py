"""Random rotation, after which all entries of an array have about the same size.

A. T. Suresh, F. X. Yu, S. Kumar, H. B. McMahan, "Distributed mean estimation with limited
communication", ICML 2017, https://arxiv.org/abs/1611.00429, section 3: a Hadamard matrix times random
signs. Konečný et al. (2016) rotate before they subsample and quantise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, draw_seed, key_of
from fedjax_sim.compression.hadamard import hadamard_transform, next_power_of_two


def rotate() -> Codec:
    """Flips signs at random, then applies the Hadamard transform; for quantisation after it.

    An array becomes a vector whose length is the next power of two, in float32 or wider. The padding is
    sent as well, and so is a seed of 4 bytes for each array. Each client and round draws other signs.
    """

    def split(key, x):
        seed = draw_seed(key)
        wide = x.reshape(-1).astype(np.promote_types(x.dtype, np.float32))
        padded = jnp.pad(wide, (0, next_power_of_two(x.size) - x.size))
        return hadamard_transform(_flipped(seed, padded)), seed

    def join(rotated, seed, like):
        padded = _flipped(seed, hadamard_transform(rotated))
        return padded[: like.size].reshape(like.shape).astype(like.dtype)

    return Codec((Step("rotate", {}, split, join, leaves_floats=True, keeps_norm=False),))


def _flipped(seed: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies a vector `[d]` by random signs, 32 of each drawn word."""
    words = jax.random.bits(key_of(seed), (-(-x.size // 32), 1), jnp.uint32)
    flips = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1
    return jnp.where(flips.reshape(-1)[: x.size] == 1, -x, x)
