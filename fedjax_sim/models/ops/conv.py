"""Convolution and max-pooling whose gradients stay fast inside compiled loops and under vmap.

Inside a loop on XLA's CPU backend, autodiff's convolution gradients run more than twenty times slower
than the forward convolution. Both gradients are themselves convolutions of ordinary shape, and are
written as such here. With one kernel per lane (vmap over clients) a convolution would always become a
grouped one; `lane_conv.py` has other ways, and knows which is fastest.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.core.checks import check_choice
from fedjax_sim.models.ops import lane_conv, winograd

CHOICES = ("auto", "direct")

# The kernel's gradient is a sum over images. On two Zen 5 cores the MNIST CNN's second layer computes it
# at 243 GFLOP/s per core for 10 images and 178 for 50, so batches are split into parts (jax 0.10.2).
_FEW_IMAGES = 10
_MOST_PARTS = 8  # each is compiled separately

_PATCHES = lane_conv.VARIANTS["patches"]


def conv2d(x: jax.Array, kernel: jax.Array, *, padding: str = "SAME", conv: str = "auto") -> jax.Array:
    """Convolves images with a kernel, stride 1.

    On a CPU, `conv="auto"` computes windows of 3 x 3 and 5 x 5 with at least 16 channels in and out by
    Winograd's minimal filtering, in float32 or wider; results then err by some 1e-5 of the largest
    entry. It multiplies patches where these are short, as 3 x 3 windows of colours are.

    Args:
      x: `[B, H, W, Ci]`.
      kernel: `[kh, kw, Ci, Co]`.
      padding: "SAME" or "VALID".
      conv: "auto", or "direct" for XLA's own convolutions.

    Returns:
      `[B, H', W', Co]`.

    Raises:
      ValueError: `padding` or `conv` is something else, or the shapes do not match.
    """
    check_choice("conv", conv, CHOICES)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"conv2d got x {x.shape} and kernel {kernel.shape}; "
            "wanted [B, H, W, Ci] and [kh, kw, Ci, Co] with the same Ci"
        )
    kh, kw = kernel.shape[:2]
    if padding == "SAME":
        pads = (((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2))
    elif padding == "VALID":
        pads = ((0, 0), (0, 0))
    else:
        raise ValueError(f"padding is {padding!r}; wanted 'SAME' or 'VALID'")
    return _conv(pads, conv == "direct", x, kernel)


@jax.custom_vjp
def max_pool2(x: jax.Array) -> jax.Array:
    """Takes the maximum of each 2 x 2 window: `[B, H, W, C]` to `[B, H/2, W/2, C]`, H and W even.

    Reshapes, since the gradient of `reduce_window` (select-and-scatter) is slow. Equal maxima of a
    window share its gradient, as in autodiff.

    Raises:
      ValueError: H or W is odd.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _windows(x):
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"max_pool2 got images of {h} x {w}; wanted even height and width")
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


def _corners(x):
    """Returns the four entries of each window. Slices fuse with what follows, reductions do not.

    Forward and backward of 10 images of 28 x 28 x 32 take 0.17 ms, with reductions 0.49 (one core of an
    Intel Xeon, jax 0.10.2).
    """
    windows = _windows(x)
    return [windows[:, :, i, :, j] for i in range(2) for j in range(2)]


def _pool_forward(x):
    y = max_pool2(x)
    return y, (x, y)


def _pool_backward(residuals, dy):
    x, y = residuals
    share = dy / sum((corner == y).astype(dy.dtype) for corner in _corners(x))
    largest = _windows(x) == y[:, :, None, :, None]
    dx = jnp.where(largest, share[:, :, None, :, None], jnp.zeros((), dy.dtype))
    return (dx.reshape(x.shape),)


max_pool2.defvjp(_pool_forward, _pool_backward)


def max_pool3(x: jax.Array) -> jax.Array:
    """Takes the maximum of 3 x 3 windows, stride 2, SAME: floats `[B, H, W, C]` to `[B, H/2, W/2, C]`.

    H and W are even; the last window of each axis then reaches one entry beyond the image, which never
    wins. The first of equal maxima, row by row, gets the gradient, as in autodiff of `reduce_window`.

    Raises:
      ValueError: H or W is odd.
    """
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"max_pool3 got images of {h} x {w}; wanted even height and width")
    # One axis at a time: forward and backward of 50 images of 24 x 24 x 64 take 1.6 ms, against 3.8 with
    # nine slices at once and 34 with `reduce_window` (one Zen 5 core, jax 0.10.2). Width first, so that
    # the first of equal maxima is the first row by row.
    return _max3(1, _max3(2, x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max3(axis: int, x: jax.Array) -> jax.Array:
    """Takes the maximum of entries 2i, 2i + 1 and 2i + 2 along an axis of even length, halving it."""
    first, second, third = _windows3(axis, x)
    return jnp.maximum(jnp.maximum(first, second), third)


def _windows3(axis, x):
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    first, second = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    return first, second, _shift(first, axis, -1, -jnp.inf)


def _shift(x, axis, by, fill):
    """Moves entries along an axis by 1 or -1, and fills the gap."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (by, -by, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), edges)


def _max3_forward(axis, x):
    y = _max3(axis, x)
    return y, (x, y)


def _max3_backward(axis, residuals, dy):
    x, y = residuals
    first, second, third = (entry == y for entry in _windows3(axis, x))
    chosen = (first, second & ~first, third & ~second & ~first)
    d_first, d_second, d_third = (jnp.where(c, dy, jnp.zeros((), dy.dtype)) for c in chosen)
    dx = jnp.stack([d_first + _shift(d_third, axis, 1, 0), d_second], axis + 1)
    return (dx.reshape(x.shape),)


_max3.defvjp(_max3_forward, _max3_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(pads: lane_conv.Padding, direct: bool, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(pads, direct)(x, kernel)


def _conv_forward(pads, direct, x, kernel):
    return _conv(pads, direct, x, kernel), (x, kernel)


def _conv_backward(pads, direct, residuals, dy):
    x, kernel = residuals
    return _input_gradient(pads, direct)(dy, kernel), _kernel_gradient(pads, direct)(x, dy)


_conv.defvjp(_conv_forward, _conv_backward)


def _fastest(x, kernel):
    """Names the fastest way to convolve `[B, H, W, C]` with one kernel of shape `(kh, kw, Ci, Co)`.

    From `benchmarks/convolutions.py`. Accelerators have convolutions of their own, narrow floats lack
    the digits for Winograd's, and no images need none.
    """
    if jax.default_backend() != "cpu" or jnp.finfo(x.dtype).bits < 32 or not len(x):
        return "direct"
    if kernel[:2] in ((3, 3), (5, 5)) and min(kernel[2:]) >= 16:
        return "winograd"
    narrow = kernel[2] > 1 and math.prod(kernel[:3]) <= 32  # patches of few numbers, as of colours
    return "patches" if narrow else "direct"


@functools.cache
def _correlate(pads: lane_conv.Padding, direct: bool):
    """Makes the function `[B, H, W, Ci]`, `[kh, kw, Ci, Co]` -> `[B, H', W', Co]`."""

    def correlate(x, kernel):
        way = "direct" if direct else _fastest(x, kernel.shape)
        if way == "winograd":
            return winograd.winograd_convolve(pads, x, kernel)
        if way == "patches":
            return _PATCHES.convolve(pads, x[None], kernel[None])[0]
        return lane_conv.correlate(pads, x, kernel).astype(x.dtype)

    return _by_lanes(correlate, functools.partial(lane_conv.convolve, "pair", pads))


@functools.cache
def _input_gradient(pads: lane_conv.Padding, direct: bool):
    """Makes the function `[B, H', W', Co]`, `[kh, kw, Ci, Co]` -> `[B, H, W, Ci]`."""

    def transposed(kernel):
        # The gradient convolves dy, padded by what the forward pass left out, with the kernel flipped
        # in space and its channels swapped.
        kh, kw = kernel.shape[-4:-2]
        (top, bottom), (left, right) = pads
        opposite = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        return opposite, kernel[..., ::-1, ::-1, :, :].swapaxes(-2, -1)

    def input_gradient(dy, kernel):
        if not direct and _fastest(dy, kernel.shape) == "winograd":
            return winograd.input_gradient(pads, dy, kernel)
        opposite, flipped = transposed(kernel)
        return lane_conv.correlate(opposite, dy, flipped).astype(dy.dtype)

    def of_lanes(dy, kernels):
        opposite, flipped = transposed(kernels)
        return lane_conv.convolve("input gradient", opposite, dy, flipped)

    return _by_lanes(input_gradient, of_lanes)


def _by_lanes(of_one, of_lanes):
    """Makes a function of images and a kernel; calls `of_lanes` where lanes have their own kernels."""
    function = jax.custom_batching.custom_vmap(of_one)

    @function.def_vmap
    def over_lanes(lanes, batched, x, kernel):
        x_batched, kernel_batched = batched
        if not kernel_batched:  # one kernel for all lanes: lanes are just more images
            merged = function(x.reshape(-1, *x.shape[2:]), kernel)
            return merged.reshape(lanes, -1, *merged.shape[1:]), True
        x = x if x_batched else jnp.broadcast_to(x, (lanes, *x.shape))
        return of_lanes(x, kernel), True

    return function


@functools.cache
def _kernel_gradient(pads: lane_conv.Padding, direct: bool):
    """Makes the function `[B, H, W, Ci]`, `[B, H', W', Co]` -> `[kh, kw, Ci, Co]`."""

    @jax.custom_batching.custom_vmap
    def kernel_gradient(x, dy):
        shape = (*lane_conv.over(x, dy.shape[1:3], pads), x.shape[-1], dy.shape[-1])
        way = "direct" if direct else _fastest(x, shape)
        if way == "winograd":
            return winograd.kernel_gradient(pads, x, dy)
        if way == "patches":
            return _PATCHES.kernel_gradient(pads, x[None], dy[None])[0]
        # Images act as channels: x as [Ci, H, W, B] with dy as a kernel [H', W', B, Co]. The
        # transposes are explicit because XLA's fast path on CPU requires this order in memory.
        images, kernels = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        width = max(_FEW_IMAGES, -(-len(x) // _MOST_PARTS))
        parts = [slice(i, i + width) for i in range(0, len(x), width)]
        gradient = sum(lane_conv.correlate(pads, images[..., p], kernels[:, :, p]) for p in parts)
        return gradient.astype(x.dtype).transpose(1, 2, 0, 3)

    @kernel_gradient.def_vmap
    def over_lanes(lanes, batched, x, dy):
        x, dy = (
            value if is_batched else jnp.broadcast_to(value, (lanes, *value.shape))
            for value, is_batched in zip((x, dy), batched, strict=True)
        )
        return lane_conv.kernel_gradient(pads, x, dy), True

    return kernel_gradient
