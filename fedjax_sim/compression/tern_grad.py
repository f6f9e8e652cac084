"""TernGrad: each entry becomes -s, 0 or s.

W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li, "TernGrad: ternary gradients to reduce
communication in distributed deep learning", NIPS 2017, https://arxiv.org/abs/1705.07878
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.compression.codec import Codec, Step, check_codes, check_scales
from fedjax_sim.compression.wire import Wire
from fedjax_sim.core.checks import as_float

_PER_BYTE = 5  # ternary digits: 3^5 = 243


def tern_grad(clip: float | None = 2.5) -> Codec:
    """Clips each array, and rounds its entries at random to -s, 0 or s, its largest magnitude.

    The mean of the rounding is exact; clipping is a bias. Five entries take a byte, 1.6 bits each.

    Args:
      clip: largest magnitude, in standard deviations of the array around zero; None for no clipping.

    Raises:
      ValueError: `clip` is not above 0.
    """
    if clip is not None and not as_float("clip", clip) > 0:
        raise ValueError(f"tern_grad's clip is {clip}; wanted a number above 0, or None")

    def split(key, x):
        wide = x.reshape(-1).astype(np.promote_types(x.dtype, np.float32))
        if clip is not None:
            most = clip * jnp.sqrt(jnp.square(wide).mean())
            wide = jnp.clip(wide, -most, most)
        scale = jnp.abs(wide).max()
        share = jnp.abs(wide) / jnp.where(scale > 0, scale, 1)
        is_kept = jax.random.uniform(key, wide.shape, wide.dtype) < share
        digits = jnp.where(is_kept, jnp.where(wide > 0, 2, 0), 1).astype(jnp.uint8)
        digits = jnp.pad(digits, (0, -x.size % _PER_BYTE)).reshape(-1, _PER_BYTE)
        octets = (digits * _POWERS).sum(axis=1, dtype=jnp.uint8)
        return None, {"digits": Wire(octets, 8), "scale": scale}

    def join(rest, parts, like):
        del rest
        digits = parts["digits"].data[:, None] // _POWERS % 3
        signs = digits.reshape(-1)[: like.size].astype(parts["scale"].dtype) - 1
        return (parts["scale"] * signs).reshape(like.shape).astype(like.dtype)

    def check(parts, like):
        octets = np.asarray(parts["digits"].data)
        check_codes("tern_grad", octets, 3**_PER_BYTE - 1)
        check_codes("tern_grad", octets[-1], 3 ** (_PER_BYTE - -like.size % _PER_BYTE) - 1)
        check_scales("tern_grad", parts["scale"])

    return Codec((Step("tern_grad", {"clip": clip}, split, join, False, False, check=check),))


_POWERS = 3 ** np.arange(_PER_BYTE, dtype=np.uint8)[None]
