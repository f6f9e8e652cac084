"""Structured updates: clients train inside a small subspace that server and client both know.

J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, "Federated learning:
strategies for improving communication efficiency", 2016, https://arxiv.org/abs/1610.05492, section 2.
Each client and round has another subspace, drawn from the ids of both; no seed is sent. Local training
moves the coordinates alone, from zero, and the coordinates are the message. So weight decay pulls them,
rather than the weights, to zero.
"""

import functools
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, Subspace, count_kept, key_of, known_seed
from fedjax_sim.compression.subsample import random_places
from fedjax_sim.core.checks import as_float, check_count


def random_mask(density: float) -> Codec:
    """Trains and sends a random `max(1, ceil(density * d))` of the `d` entries of each array.

    Args:
      density: above 0, at most 1.

    Raises:
      ValueError: the density is out of range.
    """
    density = as_float("density", density)
    if not 0 < density <= 1:
        raise ValueError(f"random_mask's density is {density}; wanted a number above 0, at most 1")

    def draw(seed, like):
        return random_places(seed, like.size, count_kept(density, like.size))

    def restrict(places, x):
        return x.reshape(-1)[places]

    def expand(places, values, like):
        zeros = jnp.zeros((like.size,), values.dtype)
        return zeros.at[places].set(values, unique_indices=True).reshape(like.shape)

    subspace = Subspace(draw, restrict, expand)
    return _structured("random_mask", {"density": density}, subspace)


def low_rank(rank: int | float) -> Codec:
    """Trains and sends the `B` of an update `A B`; `A` `[d1, k]` is random, with orthonormal columns.

    An array `[..., d2]` counts as a matrix `[d1, d2]`: kernels of convolutions have a row for each entry
    of a window and input channel. Vectors and scalars are trained and sent whole.

    Args:
      rank: `k`, a whole number; or a share of `d1`, below 1, which gives each matrix
        `max(1, ceil(share * d1))`.

    Raises:
      ValueError: the rank is out of range; or, when used, a whole number is above the rows or columns of
        a matrix.
    """
    if isinstance(rank, numbers.Integral):
        rank = check_count("rank", rank)
    elif not 0 < as_float("rank", rank) < 1:
        raise ValueError(
            f"low_rank's rank is {rank}; wanted a whole number of at least 1, or a share of the rows "
            "between 0 and 1"
        )

    def draw(seed, like):
        if len(like.shape) < 2:
            return ()
        rows, columns = like.size // like.shape[-1], like.shape[-1]
        k = rank if isinstance(rank, int) else count_kept(rank, rows)
        if isinstance(rank, int) and rank > min(rows, columns):
            raise ValueError(
                f"low_rank({rank}) got an array of shape {list(like.shape)}, a matrix of {rows} x "
                f"{columns}; wanted a rank of at most {min(rows, columns)}, or a share such as "
                "low_rank(0.1)"
            )
        wide = np.promote_types(like.dtype, np.float32)
        a = jnp.linalg.qr(jax.random.normal(key_of(seed), (rows, k), wide))[0]
        return a.astype(like.dtype)

    def restrict(a, x):
        return x if isinstance(a, tuple) else _product(a.T, x.reshape(-1, x.shape[-1]))

    def expand(a, b, like):
        return b if isinstance(a, tuple) else _product(a, b).reshape(like.shape)

    subspace = Subspace(draw, restrict, expand)
    return _structured("low_rank", {"rank": rank}, subspace)


# At full precision, or what was trained would have other coordinates when it is sent.
_product = functools.partial(jnp.matmul, precision="highest")


def _structured(name: str, settings: Mapping[str, Any], subspace: Subspace) -> Codec:
    def split(pattern, x):
        seed = known_seed(pattern)
        return subspace.restrict(subspace.draw(seed.data, x), x), seed

    def join(coordinates, seed, like):
        return subspace.expand(subspace.draw(seed.data, like), coordinates.astype(like.dtype), like)

    return Codec((Step(name, settings, split, join, True, False, subspace),))
