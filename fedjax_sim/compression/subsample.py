"""Random subsets of an array's entries, which a seed of 4 bytes names.

J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, "Federated learning:
strategies for improving communication efficiency", 2016, https://arxiv.org/abs/1610.05492, section 3;
S. U. Stich, J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with memory", NeurIPS 2018,
https://arxiv.org/abs/1809.07599, for `random_k`
"""

import jax
import jax.numpy as jnp

from fedjax_sim.compression.codec import Codec, Step, count_kept, draw_seed, key_of
from fedjax_sim.core.checks import as_float
from fedjax_sim.core.permutation import first_values


def subsample(fraction: float) -> Codec:
    """Sends a random subset of each array's entries, multiplied so that the mean is exact.

    Of `d` entries, `k = max(1, ceil(fraction * d))` are sent, times `d / k`. The error is
    `(d / k - 1) ||x||^2` on average.

    Args:
      fraction: share of the entries that are sent, above 0, at most 1.

    Raises:
      ValueError: the fraction is out of range.
    """
    return _random_entries("subsample", fraction, unbiased=True)


def random_k(fraction: float) -> Codec:
    """Sends a random subset of each array's entries as they are; for `error_feedback`.

    Args:
      fraction: see `subsample`.

    Raises:
      ValueError: the fraction is out of range.
    """
    return _random_entries("random_k", fraction, unbiased=False)


def check_fraction(name: str, fraction: float) -> float:
    """Returns the fraction of a codec's entries as a float.

    Raises:
      ValueError: it is not above 0, or above 1.
    """
    fraction = as_float("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}'s fraction is {fraction}; wanted a number above 0, at most 1")
    return fraction


def random_places(seed: jax.Array, size: int, count: int) -> jax.Array:
    """Draws `count` different places of `range(size)`, `[count]` int32."""
    return first_values(key_of(seed), size, count)


def _random_entries(name: str, fraction: float, *, unbiased: bool) -> Codec:
    fraction = check_fraction(name, fraction)

    def split(key, x):
        seed = draw_seed(key)
        places = random_places(seed, x.size, count_kept(fraction, x.size))
        return x.reshape(-1)[places], seed

    def join(values, seed, like):
        places = random_places(seed, like.size, values.size)
        if unbiased:
            values = values * (like.size / values.size)
        zeros = jnp.zeros((like.size,), like.dtype)
        full = zeros.at[places].set(values.astype(like.dtype), unique_indices=True)
        return full.reshape(like.shape)

    return Codec((Step(name, {"fraction": fraction}, split, join, True, not unbiased),))
