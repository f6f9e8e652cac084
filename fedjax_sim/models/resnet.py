"""ResNet-18 with group or batch normalisation, for small images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, normalise batches. The average of running statistics fits no client if
their data differ, so K. Hsieh, A. Phanishayee, O. Mutlu, P. B. Gibbons, "The non-IID data quagmire of
decentralized machine learning", ICML 2020, https://arxiv.org/abs/1910.00189, propose to normalise groups
of channels instead (Y. Wu, K. He, "Group normalization", ECCV 2018, https://arxiv.org/abs/1803.08494),
and S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan, "Adaptive
federated optimization", ICLR 2021, https://arxiv.org/abs/2003.00295, do so for CIFAR-100.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_choice, check_count
from fedjax_sim.core.types import Task
from fedjax_sim.models.classifier import classifier
from fedjax_sim.models.ops.conv import conv2d

_WIDTHS = (64, 128, 256, 512)
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet18(nn.Module):
    """A 3 x 3 convolution, eight residual blocks of two each, the mean over positions, logits.

    The form for 32 x 32 images: neither the first convolution nor pooling reduces them; the second,
    third and fourth pair of blocks each halve them.

    Attributes:
      num_classes: number of classes.
      norm: "group" or "batch".
      groups: groups of channels that are normalised together, if `norm` is "group".
      widths: channels of the four pairs of blocks.
      conv: that of `conv2d`.
    """

    num_classes: int
    norm: str = "group"
    groups: int = 2
    widths: tuple[int, ...] = _WIDTHS
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W multiples of 8, to logits `[B, num_classes]`."""
        norm = functools.partial(nn.GroupNorm, self.groups)
        if self.norm == "batch":
            norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(_Convolution(self.widths[0], 3, conv=self.conv)(x)))
        for stage, width in enumerate(self.widths):
            for block in range(2):
                x = _Block(width, 2 if stage and not block else 1, norm, self.conv)(x)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class _Block(nn.Module):
    """Two normalised 3 x 3 convolutions, added to their input; the first may have stride 2."""

    width: int
    stride: int
    norm: Any
    conv: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        y = nn.relu(self.norm()(_Convolution(self.width, 3, self.stride, self.conv)(x)))
        y = self.norm()(_Convolution(self.width, 3, conv=self.conv)(y))
        if x.shape != y.shape:
            x = self.norm()(_Convolution(self.width, 1, self.stride)(x))
        return nn.relu(x + y)


class _Convolution(nn.Module):
    """A convolution without biases, padded so that stride 1 keeps the size."""

    features: int
    size: int
    stride: int = 1
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        kernel = self.param("kernel", _kernel_init, (self.size, self.size, x.shape[-1], self.features))
        if self.size == 1:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        if self.stride == 1:
            return conv2d(x, kernel, conv=self.conv)
        return halving_conv(x, kernel)


def halving_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with 3 x 3 kernels, stride 2, one row and column of zeros around the image.

    Computes it as a convolution of stride 1 with 2 x 2 kernels, whose channels are blocks of 2 x 2
    pixels. That costs 16 / 9 of the operations, but `conv2d` is fast with a kernel per lane: with its
    gradients, in a loop, four lanes of 10 images of 32 x 32 x 64 take 0.9 s where XLA's convolution of
    stride 2 takes 31, and one lane 0.2 s where it takes 2.5 (two busy cores of an Intel Xeon, jax
    0.10.2).

    Args:
      x: `[B, H, W, Ci]`, H and W even.
      kernel: `[3, 3, Ci, Co]`.

    Returns:
      `[B, H / 2, W / 2, Co]`.
    """
    b, h, w, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    kernel = kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    x = x.reshape(*x.shape[:3], 4 * channels)
    return conv2d(x, kernel.reshape(2, 2, 4 * channels, -1), padding="VALID")


def resnet18(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (32, 32, 3),
    *,
    norm: str = "group",
    groups: int = 2,
    conv: str = "auto",
) -> Task:
    """Makes ResNet-18: 11,173,962 parameters on 32 x 32 x 3 and ten classes.

    As many as its common form for CIFAR-10, such as that of https://github.com/kuangliu/pytorch-cifar;
    both normalisations scale and shift each channel. Batch normalisation also keeps 9,600 running
    statistics, see `classifier`.

    Args:
      num_classes: number of classes.
      input_shape: shape of an image, height and width multiples of 8.
      norm: "group" or "batch".
      groups: groups of channels that are normalised together, if `norm` is "group"; Reddi et al. have 2.
      conv: that of `conv2d`.

    Returns:
      A task with the metrics "accuracy" and "loss".

    Raises:
      ValueError: the images are of another shape, `norm` is something else, or `groups` does not divide
        64.
    """
    check_choice("norm", norm, ("group", "batch"))
    groups = check_count("groups", groups)
    if _WIDTHS[0] % groups:
        raise ValueError(f"groups is {groups}; wanted a divisor of {_WIDTHS[0]}, the channels at first")
    if len(input_shape) != 3 or any(size < 8 or size % 8 for size in input_shape[:2]):
        raise ValueError(
            f"input_shape is {input_shape}; wanted (height, width, channels) with height and width "
            "multiples of 8, since images are halved three times"
        )
    return classifier(ResNet18(num_classes, norm, groups, conv=conv), input_shape)
