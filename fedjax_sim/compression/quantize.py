"""Stochastic uniform quantisation.

J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, "Federated learning:
strategies for improving communication efficiency", 2016, https://arxiv.org/abs/1610.05492, section 3,
with `2^bits` levels, where that paper has as many intervals, as in A. T. Suresh, F. X. Yu, S. Kumar,
H. B. McMahan, "Distributed mean estimation with limited communication", ICML 2017,
https://arxiv.org/abs/1611.00429
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, check_codes
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core.checks import check_count

_MOST_BITS = 16


def quantize(bits: int | None = None, *, levels: int | None = None) -> Codec:
    """Rounds each entry at random to one of `k` levels between an array's least and largest entry.

    An entry goes to the two nearest levels with the probabilities that make its mean exact, up to
    float rounding. Each array is sent with its least and largest entry, in float32 or wider. An array
    with a NaN or an infinity is decoded as NaN.

    Args:
      bits: bits of an entry, from 1 to 16; `k = 2^bits`.
      levels: `k` itself, from 2 to 65536, if it is no power of two; an entry then takes the bits that
        `k` needs.

    Raises:
      ValueError: `bits` or `levels` is out of range, or both or none are given.
    """
    if (bits is None) == (levels is None):
        raise ValueError(f"quantize got bits={bits}, levels={levels}; wanted one of the two")
    if levels is None:
        bits = check_count("bits", bits)
        if bits > _MOST_BITS:
            raise ValueError(f"quantize's bits is {bits}; wanted a whole number from 1 to {_MOST_BITS}")
        settings, levels = {"bits": bits}, 2**bits
    else:
        levels = check_count("levels", levels)
        if not 2 <= levels <= 2**_MOST_BITS:
            raise ValueError(f"quantize's levels is {levels}; wanted from 2 to {2**_MOST_BITS}")
        settings, bits = {"levels": levels}, (levels - 1).bit_length()
    most = levels - 1
    dtype_sent = jnp.uint8 if bits <= 8 else jnp.uint16

    def split(key, x):
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        low, high = wide.min(), wide.max()
        step = (high - low) / most
        position = (wide - low) / jnp.where(step > 0, step, 1)
        level = jnp.floor(position + jax.random.uniform(key, x.shape, wide.dtype))
        codes = jnp.clip(level, 0, most).astype(dtype_sent)
        return None, {"codes": Wire(codes, bits), "low": low, "high": high}

    def join(rest, parts, like):
        del rest
        low, high = parts["low"], parts["high"]
        codes = parts["codes"].data.astype(low.dtype)
        return (low + codes * ((high - low) / most)).astype(like.dtype)

    def check(parts, like):
        check_codes("quantize", parts["codes"].data, most)
        if parts["low"] > parts["high"]:
            raise ValueError("quantize got a least entry above the largest; wanted the reverse")

    return Codec((Step("quantize", settings, split, join, False, False, check=check),))
