"""Floats with fewer bits."""

import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, check_scales

_FP8 = jnp.float8_e4m3fn


def bfloat16() -> Codec:
    """Rounds each entry to the nearest bfloat16: 2 bytes, 8 significant bits."""

    def split(key, x):
        del key
        return x.astype(jnp.bfloat16), ()

    def join(rest, parts, like):
        del parts
        return rest.astype(like.dtype)

    return Codec((Step("bfloat16", {}, split, join, leaves_floats=True, keeps_norm=False),))


def fp8() -> Codec:
    """Rounds each entry to the nearest 8-bit float, 4 significant bits, after scaling each array.

    The format is E4M3, whose largest number is 448. Each array is divided by a scale, sent in float32 or
    wider, that makes its largest magnitude 448.

    Source: P. Micikevicius et al., "FP8 formats for deep learning", 2022,
    https://arxiv.org/abs/2209.05433
    """
    most = float(jnp.finfo(_FP8).max)

    def split(key, x):
        del key
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        scale = jnp.abs(wide).max() / most
        small = (wide / jnp.where(scale > 0, scale, 1)).astype(_FP8)
        return None, {"values": small, "scale": scale}

    def join(rest, parts, like):
        del rest
        return (parts["values"].astype(parts["scale"].dtype) * parts["scale"]).astype(like.dtype)

    def check(parts, like):
        check_scales("fp8", parts["scale"])

    return Codec((Step("fp8", {}, split, join, False, False, check=check),))
