"""EDEN: a few bits for each entry, after a random rotation.

S. Vargaftik, R. Ben-Basat, A. Portnoy, G. Mendelson, Y. Ben-Itzhak, M. Mitzenmacher, "EDEN:
communication-efficient and robust distributed mean estimation for federated learning", ICML 2022,
https://arxiv.org/abs/2108.08842
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from fedjax_sim.compression.codec import Codec, Step, check_scales
from fedjax_sim.compression.rotate import rotate
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core.checks import check_count

_MOST_BITS = 8


def eden(bits: int) -> Codec:
    """Rotates an array, rounds to the best `2^bits` levels of a Gaussian, and sends one scale.

    The scale is `||x||^2 / <Rx, q>` for the rounded `q`; `drive` says how exact it makes the mean over
    many clients. The expected errors of a long array are 0.571, 0.133, 0.036 and 0.0096 times
    `||x||^2` for 1 to 4 bits; `eden(1)` is `drive()`.

    Args:
      bits: bits of an entry, from 1 to 8.

    Raises:
      ValueError: `bits` is out of range.
    """
    bits = check_count("bits", bits)
    if bits > _MOST_BITS:
        raise ValueError(f"eden's bits is {bits}; wanted a whole number from 1 to {_MOST_BITS}")
    levels = gaussian_levels(bits)
    borders = (levels[1:] + levels[:-1]) / 2

    def split(key, x):
        del key
        square = jnp.square(x).sum()
        unit = x * jax.lax.rsqrt(jnp.where(square > 0, square, 1) / x.size)
        codes = jnp.searchsorted(jnp.asarray(borders, x.dtype), unit).astype(jnp.uint8)
        aligned = (x * jnp.asarray(levels, x.dtype)[codes]).sum()
        scale = square / jnp.where(square > 0, aligned, 1)
        return None, {"codes": Wire(codes, bits), "scale": scale}

    def join(rest, parts, like):
        del rest
        return parts["scale"] * jnp.asarray(levels, like.dtype)[parts["codes"].data]

    def check(parts, like):
        check_scales("eden", parts["scale"])

    rounding = Step("gaussian_levels", {"bits": bits}, split, join, False, False, check=check)
    return rotate() >> Codec((rounding,))


@functools.cache
def gaussian_levels(bits: int) -> np.ndarray:
    """Returns the `2^bits` levels that round N(0, 1) with the least squared error, `[2^bits]`, rising.

    Each level is the mean of the numbers that are rounded to it. Source: S. P. Lloyd, "Least squares
    quantization in PCM", IEEE Transactions on Information Theory, 1982.
    """
    count = 2 ** (bits - 1)  # of the positive half; the levels are symmetric
    # Quantiles of N(0, 3) are nearly the solution for many levels.
    levels = math.sqrt(3) * special.ndtri(0.5 + (np.arange(count) + 0.5) / (2 * count))
    change = math.inf
    while change > 1e-9:
        borders = np.concatenate([[0], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(borders**2) / 2) / math.sqrt(2 * math.pi)
        means = -np.diff(density) / np.diff(special.ndtr(borders))
        change, levels = np.abs(means - levels).max(), means
    return np.concatenate([-levels[::-1], levels])
