"""The vision transformer.

A. Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale", ICLR
2021, https://arxiv.org/abs/2010.11929; its size "Ti" is from H. Touvron, M. Cord, M. Douze, F. Massa,
A. Sablayrolles, H. Jégou, "Training data-efficient image transformers & distillation through attention",
ICML 2021, https://arxiv.org/abs/2012.12877.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Task
from fedjax_sim.models.attention import Block, check_heads
from fedjax_sim.models.classifier import classifier


class ViT(nn.Module):
    """Embedded patches and a class token through blocks of attention; logits of the token.

    With images of P patches, D numbers each, and width W, it has `(D + 1) W + W + (P + 1) W` parameters
    in patches, token and positions, `12 W^2 + 13 W` in each block, and `2 W + (W + 1) num_classes` at
    the end.

    Attributes:
      num_classes: number of classes.
      patch: height and width of a patch, in pixels.
      layers: number of blocks.
      width: numbers per patch.
      heads: number of heads, a divisor of the width.
    """

    num_classes: int
    patch: int = 4
    layers: int = 6
    width: int = 192
    heads: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W multiples of the patch, to logits `[B, num_classes]`."""
        b, h, w, channels = x.shape
        size = self.patch
        x = x.reshape(b, h // size, size, w // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
        x = nn.Dense(self.width, name="patches")(x.reshape(b, -1, size * size * channels))
        start = nn.initializers.truncated_normal(0.02)
        token = self.param("token", start, (1, 1, self.width))
        positions = self.param("positions", start, (1, x.shape[1] + 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, self.width)), x], axis=1) + positions
        for _ in range(self.layers):
            x = Block(self.heads, causal=False)(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x[:, 0]))


def vit(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    *,
    patch: int = 4,
    layers: int = 6,
    width: int = 192,
    heads: int = 3,
) -> Task:
    """Makes a small vision transformer: 2,693,578 parameters on 32 x 32 x 3 and ten classes.

    It is half as deep as ViT-Ti, which `vit(1000, (224, 224, 3), patch=16, layers=12)` gives with the
    5,717,416 parameters of https://github.com/facebookresearch/deit. There is no dropout.

    Args:
      num_classes: number of classes.
      input_shape: shape of an image.
      patch: height and width of a patch, in pixels.
      layers: number of blocks.
      width: numbers per patch.
      heads: number of heads, a divisor of the width.

    Returns:
      A task with the metrics "accuracy" and "loss".

    Raises:
      ValueError: the images do not consist of whole patches, or a setting is out of range.
    """
    patch, layers = check_count("patch", patch), check_count("layers", layers)
    check_heads(width, heads)
    if len(input_shape) != 3 or any(size < patch or size % patch for size in input_shape[:2]):
        raise ValueError(
            f"input_shape is {input_shape}; wanted (height, width, channels) with height and width "
            f"multiples of patch={patch}"
        )
    return classifier(ViT(num_classes, patch, layers, width, heads), input_shape)
