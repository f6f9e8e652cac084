"""Blocks of self-attention, with or without a causal mask and rotary positions.

A. Vaswani et al., "Attention is all you need", NIPS 2017, https://arxiv.org/abs/1706.03762, with layer
normalisation before each part; J. Su, Y. Lu, S. Pan, A. Murtadha, B. Wen, Y. Liu, "RoFormer: enhanced
transformer with rotary position embedding", https://arxiv.org/abs/2104.09864.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10_000.0  # of the wavelengths, RoFormer, section 3.2.2


class Block(nn.Module):
    """Self-attention and a layer of four times the width, each normalised before and added to its input.

    Attributes:
      heads: number of heads, a divisor of the width.
      causal: whether a position sees itself and earlier ones alone, and positions are rotary; otherwise
        all see each other, in no order.
    """

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, T, width]` to `[B, T, width]`."""
        width = x.shape[-1]
        q, k, v = jnp.split(nn.Dense(3 * width)(nn.LayerNorm()(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in (q, k, v))
        if self.causal:
            q, k = rotated(q), rotated(k)
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + nn.Dense(width)(seen.reshape(x.shape))
        hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)), approximate=False)
        return x + nn.Dense(width)(hidden)


def rotated(x: jax.Array) -> jax.Array:
    """Rotates pairs of entries at position t by t theta_i, theta_i = 10000^(-2 i / d), RoFormer's (15).

    Products of rotated vectors depend on the vectors and on the distance of their positions alone.

    Args:
      x: `[B, T, heads, d]`, d even; entries 2 i and 2 i + 1 are pair i.
    """
    positions, pairs = x.shape[1], x.shape[-1] // 2
    theta = _BASE ** (-np.arange(pairs) / pairs)
    # In float64 first: float32 would lose the fraction of a turn at late positions.
    angles = np.arange(positions)[:, None] * theta
    cos, sin = (jnp.asarray(f(angles)[None, :, None], jnp.float32) for f in (np.cos, np.sin))
    first, second = (x[..., i::2].astype(jnp.float32) for i in range(2))
    turned = first * cos - second * sin, first * sin + second * cos
    return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)


def check_heads(width: int, heads: int, *, even: bool = False) -> None:
    """Checks that heads can share the width.

    Args:
      width: numbers per position.
      heads: number of heads.
      even: whether a head's part must be even.

    Raises:
      ValueError: they cannot.
    """
    multiple = 2 * heads if even else heads
    if heads < 1 or width < 1 or width % multiple:
        raise ValueError(f"width is {width} for {heads} heads; wanted a multiple of {multiple}")
