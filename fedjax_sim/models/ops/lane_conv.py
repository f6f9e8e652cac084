"""Convolution with one kernel per lane, by the variant that was measured fastest for its shape.

With clients as lanes, every client has its own weights. For XLA such a product is a grouped convolution;
it can also be written as matrix products, of patches or of shifted images. The fastest variant depends
on the layer, the product and the backend, so all were timed (`benchmarks/lane_convolutions.py`), and
`choose` looks up the winner.

A product has one of two roles in a training step. A convolution and its kernel's gradient can share
patches of the same images, which separate timings would not show; they are a "pair", timed together
and computed by one variant. An "input gradient" needs its own patches and is chosen separately.

Letters: `L` lanes, `B` images per lane, `H, W` their height and width, `H', W'` those of outputs,
`Ci, Co` channels in and out, `kh, kw` the window.
"""

import math
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
ROLES = ("pair", "input gradient")


class Shape(NamedTuple):
    """Sizes that determine the cost of a product; an input gradient has its channels swapped."""

    lanes: int
    images: int
    height: int  # of the outputs
    width: int
    channels_in: int
    channels_out: int
    window_height: int
    window_width: int


def convolve(role: str, pads: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each lane's images with its own kernel.

    Args:
      role: one of `ROLES`.
      pads: (top, bottom), (left, right).
      x: `[L, B, H, W, Ci]`.
      kernel: `[L, kh, kw, Ci, Co]`.

    Returns:
      `[L, B, H', W', Co]`, of x's dtype.
    """
    window = kernel.shape[1:3]
    positions = over(x, window, pads)
    shape = Shape(*x.shape[:2], *positions, *kernel.shape[3:], *window)
    return _chosen(role, shape).convolve(pads, x, kernel).astype(x.dtype)


def kernel_gradient(pads: Padding, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Computes the gradient of each lane's kernel.

    Args:
      pads: (top, bottom), (left, right).
      x: `[L, B, H, W, Ci]`.
      dy: `[L, B, H', W', Co]`.

    Returns:
      `[L, kh, kw, Ci, Co]`, of x's dtype.
    """
    window = over(x, dy.shape[2:4], pads)
    shape = Shape(*x.shape[:2], *dy.shape[2:4], x.shape[-1], dy.shape[-1], *window)
    return _chosen("pair", shape).kernel_gradient(pads, x, dy).astype(x.dtype)


def correlate(pads: Padding, x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    """Convolves `[B, H, W, G * Ci]` with `[kh, kw, Ci, G * Co]` by XLA, in the dtype of its sums."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        preferred_element_type=_sums_of(x),
    )


def _sums_of(x):
    """Returns the dtype in which products are added: float32 for narrower ones."""
    return jnp.float32 if jnp.finfo(x.dtype).bits < 32 else x.dtype


def over(x: jax.Array, size: tuple[int, int], pads: Padding) -> tuple[int, int]:
    """Returns the output size for a window of `size` on padded images, or the window for that output."""
    return tuple(n + sum(pad) - k + 1 for n, k, pad in zip(x.shape[-3:-1], size, pads, strict=True))


def _padded(x, pads):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*pads, (0, 0)])


def _shifts(x, window, pads):
    """Returns, for each place of the window, row by row, the `[..., H', W', C]` that it sees of `x`."""
    height, width = over(x, window, pads)
    x = _padded(x, pads)
    return [x[..., i : i + height, j : j + width, :] for i in range(window[0]) for j in range(window[1])]


def _patches(x, window, pads):
    """Returns `[L, B, H', W', kh * kw * C]`: what each position of the window sees of `x`."""
    if jax.default_backend() == "cpu":
        return jnp.concatenate(_shifts(x, window, pads), axis=-1)
    return _gathered_patches(x, window, pads)


def _gathered_patches(x, window, pads):
    """Returns the same by a gather: on an H200, products take 0.5 to 0.9 of the time."""
    height, width = over(x, window, pads)
    x = _padded(x, pads)
    lanes, images, rows, columns, channels = x.shape
    # A row of the window is contiguous: [L * B, rows, columns * C] in slices of [kh, kw * C].
    corners = np.indices((height, width)).reshape(2, -1).T * (1, channels)
    patches = lax.gather(
        x.reshape(lanes * images, rows, columns * channels),
        jnp.asarray(corners, jnp.int32),
        lax.GatherDimensionNumbers((0, 2, 3), collapsed_slice_dims=(), start_index_map=(1, 2)),
        slice_sizes=(lanes * images, window[0], window[1] * channels),
        mode="promise_in_bounds",
    )
    return patches.reshape(lanes, images, height, width, -1)


def _convolve_grouped(pads, x, kernel):
    lanes = len(x)
    # [B, H, W, L * Ci] with [kh, kw, Ci, L * Co].
    images, kernels = (a.transpose(1, 2, 3, 0, 4) for a in (x, kernel))
    images = images.reshape(*images.shape[:3], -1)
    kernels = kernels.reshape(*kernels.shape[:3], -1)
    y = correlate(pads, images, kernels, lanes)
    return y.reshape(*y.shape[:3], lanes, -1).transpose(3, 0, 1, 2, 4)


def _convolve_patches(pads, x, kernel):
    patches = _patches(x, kernel.shape[1:3], pads)
    matrix = kernel.reshape(len(kernel), -1, kernel.shape[-1])
    return jnp.einsum("lbhwp,lpo->lbhwo", patches, matrix, preferred_element_type=_sums_of(x))


def _convolve_shifted(pads, x, kernel):
    window = kernel.shape[1:3]
    matrices = kernel.reshape(len(kernel), -1, *kernel.shape[3:])
    return sum(
        jnp.einsum("lbhwc,lco->lbhwo", shifted, matrices[:, i], preferred_element_type=_sums_of(x))
        for i, shifted in enumerate(_shifts(x, window, pads))
    )


def _kernel_gradient_grouped(pads, x, dy):
    lanes = len(x)
    # Images act as channels: [Ci, H, W, L * B] with [H', W', B, L * Co].
    images, kernels = x.transpose(4, 2, 3, 0, 1), dy.transpose(2, 3, 1, 0, 4)
    images = images.reshape(*images.shape[:3], -1)
    kernels = kernels.reshape(*kernels.shape[:3], -1)
    gradient = correlate(pads, images, kernels, lanes)
    return gradient.reshape(*gradient.shape[:3], lanes, -1).transpose(3, 1, 2, 0, 4)


def _kernel_gradient_patches(pads, x, dy):
    window = over(x, dy.shape[2:4], pads)
    patches = _patches(x, window, pads)
    matrix = jnp.einsum("lbhwp,lbhwo->lpo", patches, dy, preferred_element_type=_sums_of(x))
    return matrix.reshape(len(x), *window, x.shape[-1], dy.shape[-1])


def _kernel_gradient_shifted(pads, x, dy):
    window = over(x, dy.shape[2:4], pads)
    matrices = [
        jnp.einsum("lbhwc,lbhwo->lco", shifted, dy, preferred_element_type=_sums_of(x))
        for shifted in _shifts(x, window, pads)
    ]
    return jnp.stack(matrices, 1).reshape(len(x), *window, x.shape[-1], dy.shape[-1])


class Variant(NamedTuple):
    """One way to compute what `convolve` and `kernel_gradient` return."""

    convolve: Callable[[Padding, jax.Array, jax.Array], jax.Array]
    kernel_gradient: Callable[[Padding, jax.Array, jax.Array], jax.Array]


VARIANTS = types.MappingProxyType(
    {
        "grouped": Variant(_convolve_grouped, _kernel_gradient_grouped),
        "patches": Variant(_convolve_patches, _kernel_gradient_patches),
        "shifted": Variant(_convolve_shifted, _kernel_gradient_shifted),
    }
)


class Row(NamedTuple):
    """A measurement: its product, the milliseconds of the three variants, and the fastest."""

    backend: str
    role: str
    shape: tuple[int, ...]  # as in `Shape`
    grouped: float
    patches: float
    shifted: float
    choice: str


# benchmarks/results/lane_convolutions.json, printed by the benchmark: milliseconds of processor time on
# two Zen 5 cores, jax 0.10.2, float32, on a shared machine. Time of whole steps with these choices,
# relative to patches everywhere, B = 10 (benchmarks/lane_steps.py, results beside it): MNIST CNN 0.91
# (4 lanes) and 0.94 (16), dropout CNN 0.84, CIFAR CNN 0.99 (4). On an H200, wall time with jax 0.11.2; a
# step of the MNIST CNN, 10 lanes, takes 0.77 of its time with concatenated patches everywhere
# (benchmarks/results/lane_convolutions_h200.json).
# fmt: off
ROWS = (
    Row("cpu", "pair", (4, 10, 28, 28, 1, 32, 5, 5), 3.15, 1.83, 2.53, "patches"),
    Row("cpu", "pair", (16, 10, 28, 28, 1, 32, 5, 5), 18.6, 11.2, 10.8, "shifted"),
    Row("cpu", "pair", (4, 50, 28, 28, 1, 32, 5, 5), 17.6, 13.8, 18.1, "patches"),
    Row("cpu", "pair", (16, 50, 28, 28, 1, 32, 5, 5), 217, 148, 188, "patches"),
    Row("cpu", "pair", (4, 10, 14, 14, 32, 64, 5, 5), 43.6, 15.9, 27.7, "patches"),
    Row("cpu", "input gradient", (4, 10, 14, 14, 64, 32, 5, 5), 43, 25.2, 9.67, "shifted"),
    Row("cpu", "pair", (16, 10, 14, 14, 32, 64, 5, 5), 282, 156, 228, "patches"),
    Row("cpu", "input gradient", (16, 10, 14, 14, 64, 32, 5, 5), 205, 211, 174, "shifted"),
    Row("cpu", "pair", (4, 50, 14, 14, 32, 64, 5, 5), 331, 173, 270, "patches"),
    Row("cpu", "input gradient", (4, 50, 14, 14, 64, 32, 5, 5), 237, 242, 200, "shifted"),
    Row("cpu", "pair", (16, 50, 14, 14, 32, 64, 5, 5), 1950, 762, 1160, "patches"),
    Row("cpu", "input gradient", (16, 50, 14, 14, 64, 32, 5, 5), 1020, 1040, 868, "shifted"),
    Row("cpu", "pair", (4, 10, 24, 24, 3, 64, 5, 5), 15.5, 5.54, 50.2, "patches"),
    Row("cpu", "pair", (16, 10, 24, 24, 3, 64, 5, 5), 117, 56.2, 323, "patches"),
    Row("cpu", "pair", (4, 50, 24, 24, 3, 64, 5, 5), 186, 57, 384, "patches"),
    Row("cpu", "pair", (16, 50, 24, 24, 3, 64, 5, 5), 912, 352, 1510, "patches"),
    Row("cpu", "pair", (4, 10, 12, 12, 64, 64, 5, 5), 98.4, 38.6, 45.4, "patches"),
    Row("cpu", "input gradient", (4, 10, 12, 12, 64, 64, 5, 5), 48.7, 26.5, 12.6, "shifted"),
    Row("cpu", "pair", (16, 10, 12, 12, 64, 64, 5, 5), 391, 208, 273, "patches"),
    Row("cpu", "input gradient", (16, 10, 12, 12, 64, 64, 5, 5), 194, 161, 137, "shifted"),
    Row("cpu", "pair", (4, 50, 12, 12, 64, 64, 5, 5), 520, 253, 353, "patches"),
    Row("cpu", "input gradient", (4, 50, 12, 12, 64, 64, 5, 5), 245, 191, 167, "shifted"),
    Row("cpu", "pair", (16, 50, 12, 12, 64, 64, 5, 5), 2550, 1010, 1440, "patches"),
    Row("cpu", "input gradient", (16, 50, 12, 12, 64, 64, 5, 5), 1180, 896, 744, "shifted"),
    Row("cpu", "pair", (4, 10, 30, 30, 3, 32, 3, 3), 12.3, 3.33, 11.4, "patches"),
    Row("cpu", "pair", (16, 10, 30, 30, 3, 32, 3, 3), 61, 24.1, 137, "patches"),
    Row("cpu", "pair", (4, 50, 30, 30, 3, 32, 3, 3), 56.6, 30.1, 118, "patches"),
    Row("cpu", "pair", (16, 50, 30, 30, 3, 32, 3, 3), 498, 190, 581, "patches"),
    Row("cpu", "pair", (4, 10, 28, 28, 32, 64, 3, 3), 52.4, 39.5, 73.4, "patches"),
    Row("cpu", "input gradient", (4, 10, 30, 30, 64, 32, 3, 3), 23.9, 84.9, 44, "grouped"),
    Row("cpu", "pair", (16, 10, 28, 28, 32, 64, 3, 3), 454, 231, 321, "patches"),
    Row("cpu", "input gradient", (16, 10, 30, 30, 64, 32, 3, 3), 113, 316, 284, "grouped"),
    Row("cpu", "pair", (4, 50, 28, 28, 32, 64, 3, 3), 544, 285, 411, "patches"),
    Row("cpu", "input gradient", (4, 50, 30, 30, 64, 32, 3, 3), 189, 420, 360, "grouped"),
    Row("cpu", "pair", (16, 50, 28, 28, 32, 64, 3, 3), 2690, 1180, 1590, "patches"),
    Row("cpu", "input gradient", (16, 50, 30, 30, 64, 32, 3, 3), 901, 1780, 1550, "grouped"),
    Row("gpu", "pair", (10, 10, 28, 28, 1, 32, 5, 5), 0.643, 0.05, 0.077, "patches"),
    Row("gpu", "pair", (10, 10, 14, 14, 32, 64, 5, 5), 0.42, 0.115, 0.336, "patches"),
    Row("gpu", "input gradient", (10, 10, 14, 14, 64, 32, 5, 5), 0.099, 0.103, 0.192, "grouped"),
    Row("gpu", "pair", (50, 10, 30, 30, 3, 32, 3, 3), 3.63, 0.175, 0.439, "patches"),
    Row("gpu", "pair", (50, 10, 28, 28, 32, 64, 3, 3), 3.35, 0.541, 1.6, "patches"),
    Row("gpu", "input gradient", (50, 10, 30, 30, 64, 32, 3, 3), 0.503, 0.672, 0.933, "grouped"),
)
# fmt: on


def choose(role: str, shape: Shape, backend: str) -> str:
    """Names the variant to use: the winner for the nearest shape measured on the backend.

    Distance is the sum of the absolute logarithms of the sizes' ratios. A backend without measurements
    gets "patches": one matrix product per lane.

    Args:
      role: one of `ROLES`.
      shape: shape of the product, the same for both products of a pair.
      backend: name from `jax.default_backend()`.

    Returns:
      "grouped", "patches" or "shifted".
    """

    def distance(row):
        return sum(abs(math.log(a / b)) for a, b in zip(row.shape, shape, strict=True))

    rows = [row for row in ROWS if (row.backend, row.role) == (backend, role)]
    return min(rows, key=distance).choice if rows else "patches"


def _chosen(role, shape):
    return VARIANTS[choose(role, shape, jax.default_backend())]
