"""Convolution with fewer multiplications: Winograd's minimal filtering.

A tile of m x m outputs of an r x r convolution depends on n x n inputs, n = m + r - 1. Linear transforms
of tile and kernel turn the convolution into n * n multiplications instead of m * m * r * r: for m = 4,
36 instead of 144 (r = 3) and 64 instead of 400 (r = 5). With all tiles and channels, that is one batched
matrix product. The transforms are matrix products as well, along one axis of the image or both, which is
how XLA's CPU backend computes them fastest.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, whose A, B, G, m
and r these are. The gradients are the transposed algorithm; they share transforms with the forward pass
and with each other, which XLA computes once.

Letters: `B` images, `H, W` their height and width, `H', W'` those of outputs, `Ci, Co` channels in and
out, `P` tiles of all images.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.models.ops.lane_conv import Padding

_TILE = 4  # m
# At once: on one core of an Intel Xeon, 100 images of the MNIST CNN's second layer take twice the time
# per image of 10 or 40 (jax 0.10.2).
_MOST_IMAGES = 50
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


class _Plan(NamedTuple):
    """Sizes of one convolution."""

    pads: Padding
    images: int
    height: int  # of the inputs
    width: int
    r: int

    @property
    def n(self):
        return _TILE + self.r - 1

    @property
    def outputs(self):
        sizes = self.height, self.width
        return tuple(size + sum(pad) - self.r + 1 for size, pad in zip(sizes, self.pads, strict=True))

    @property
    def tiles(self):
        return tuple(-(-size // _TILE) for size in self.outputs)


class _Matrices(NamedTuple):
    """The outputs of a tile of one dimension are `a.T @ ((g @ kernel) * (bt @ tile))`."""

    a: np.ndarray  # [n, m]
    bt: np.ndarray  # [n, n]
    g: np.ndarray  # [n, r]

    def of_columns_and_rows(self, name):
        """Returns a matrix that transforms both axes of a tile, with columns as the first."""
        return np.kron(getattr(self, name), getattr(self, name))


@functools.cache
def _matrices(r: int) -> _Matrices:
    """Interpolates polynomials at `_POINTS` and at infinity, as Toom and Cook do."""
    n = _TILE + r - 1

    def values(size):
        """Maps coefficients to values: `[n, size]`."""
        powers = np.array(_POINTS[: n - 1])[:, None] ** np.arange(size)
        return np.vstack([powers, np.eye(size)[-1]])

    bt = np.linalg.inv(values(n)).T
    scale = np.abs(bt).max(axis=1, keepdims=True)  # so that both factors of a product are of usual size
    return _Matrices(values(_TILE), bt / scale, values(r) * scale)


@functools.partial(jax.jit, static_argnums=0)  # so that `training_flops` sees what it is, by its name
def winograd_convolve(pads: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with stride 1.

    Args:
      pads: (top, bottom), (left, right).
      x: `[B, H, W, Ci]`.
      kernel: `[r, r, Ci, Co]`, r = 3 or 5.

    Returns:
      `[B, H', W', Co]`.
    """
    transformed = _kernels(kernel)

    def part(x):
        plan = _Plan(pads, *x.shape[:3], len(kernel))
        return _join(plan, jnp.einsum("npi,nio->npo", _tiles(plan, x), transformed))

    return _concatenated(part, x)


def input_gradient(pads: Padding, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the gradient with respect to x, `[B, H, W, Ci]`, given `[B, H', W', Co]`."""
    r = len(kernel)
    height, width = (n - sum(pad) + r - 1 for n, pad in zip(dy.shape[1:3], pads, strict=True))
    transformed = _kernels(kernel)

    def part(dy):
        plan = _Plan(pads, len(dy), height, width, r)
        return _add_tiles(plan, jnp.einsum("npo,nio->npi", _split(plan, dy), transformed))

    return _concatenated(part, dy)


def kernel_gradient(pads: Padding, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Returns the gradient with respect to the kernel, `[r, r, Ci, Co]`, given `[B, H', W', Co]`."""
    r = x.shape[1] + sum(pads[0]) - dy.shape[1] + 1

    def part(x, dy):
        plan = _Plan(pads, *x.shape[:3], r)
        return jnp.einsum("npi,npo->nio", _tiles(plan, x), _split(plan, dy))

    products = _mapped(part, x, dy).sum(axis=0)
    kernel = _apply(_matrices(r).of_columns_and_rows("g").T, products)
    return kernel.reshape(r, r, *products.shape[1:]).swapaxes(0, 1)


def _mapped(part, *images):
    """Applies `part` to at most `_MOST_IMAGES` at a time, filled up with zeros; stacks the results."""
    count = -(-len(images[0]) // _MOST_IMAGES)
    if count == 1:  # outside a loop, where transforms can be shared
        return part(*images)[None]
    size = -(-len(images[0]) // count)
    images = [jnp.pad(x, [(0, size * count - len(x))] + [(0, 0)] * 3) for x in images]
    return lax.map(lambda x: part(*x), [x.reshape(count, size, *x.shape[1:]) for x in images])


def _concatenated(part, x):
    """Applies `part` to images, some at a time."""
    y = _mapped(part, x)
    return y.reshape(-1, *y.shape[2:])[: len(x)]


def _apply(matrix, x):
    """Multiplies the first axis of `x`."""
    return jnp.asarray(matrix, x.dtype) @ x.reshape(len(x), -1)


def _kernels(kernel):
    """Transforms `[r, r, Ci, Co]` to `[n * n, Ci, Co]`."""
    r = len(kernel)
    matrix = _matrices(r).of_columns_and_rows("g")
    return _apply(matrix, kernel.swapaxes(0, 1).reshape(r * r, -1)).reshape(-1, *kernel.shape[2:])


def _tiles(plan, x):
    """Cuts `[B, H, W, Ci]` into overlapping tiles and transforms them: `[n * n, P, Ci]`."""
    n, (down, across) = plan.n, plan.tiles
    sizes = (_TILE * count + plan.r - 1 for count in plan.tiles)
    x = _fit(x, [(pad[0], size) for pad, size in zip(plan.pads, sizes, strict=True)])
    bt = _matrices(plan.r).bt
    images, _, width, channels = x.shape
    rows = jnp.stack([x[:, i : i + _TILE * (down - 1) + 1 : _TILE] for i in range(n)])
    rows = _apply(bt, rows).reshape(n, images, down, width, channels)
    columns = jnp.stack([rows[:, :, :, j : j + _TILE * (across - 1) + 1 : _TILE] for j in range(n)])
    return _apply(bt, columns).reshape(n * n, -1, channels)


def _fit(x, axes):
    """Pads the axes after the first by (before, size) each, cutting what no window reaches."""
    pads = [
        (before, max(0, size - before - have))
        for (before, size), have in zip(axes, x.shape[1:], strict=False)
    ]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    return x[:, : axes[0][1], : axes[1][1]]


def _add_tiles(plan, products):
    """The transpose of `_tiles`: `[n * n, P, Ci]` to `[B, H, W, Ci]`."""
    n, (down, across) = plan.n, plan.tiles
    (top, _), (left, _) = plan.pads
    matrix = _matrices(plan.r).of_columns_and_rows("bt").T
    tiles = _apply(matrix, products).reshape(n, n, plan.images, down, across, -1)
    # Tiles overlap. Split into parts of at most m entries per axis, they fit the blocks of an image.
    reach = -(-n // _TILE)
    shape = (plan.images, down + reach - 1, _TILE, across + reach - 1, _TILE, tiles.shape[-1])
    image = jnp.zeros(shape, tiles.dtype)
    for i, j in itertools.product(range(reach), repeat=2):
        part = tiles[j * _TILE : (j + 1) * _TILE, i * _TILE : (i + 1) * _TILE].transpose(
            2, 3, 1, 4, 0, 5
        )
        start = (0, i, 0, j, 0, 0)
        image = lax.dynamic_update_slice(
            image, lax.dynamic_slice(image, start, part.shape) + part, start
        )
    image = image.reshape(plan.images, shape[1] * _TILE, shape[3] * _TILE, -1)
    return image[:, top : top + plan.height, left : left + plan.width]


def _join(plan, products):
    """Computes the outputs of tiles, `[n * n, P, Co]`, and places them: `[B, H', W', Co]`."""
    rows, columns = plan.outputs
    matrix = _matrices(plan.r).of_columns_and_rows("a").T
    tiles = _apply(matrix, products).reshape(_TILE, _TILE, plan.images, *plan.tiles, -1)
    images = tiles.transpose(2, 3, 1, 4, 0, 5)
    images = images.reshape(plan.images, *(_TILE * count for count in plan.tiles), -1)
    return images[:, :rows, :columns]


def _split(plan, dy):
    """The transpose of `_join`: `[B, H', W', Co]` to `[n * n, P, Co]`."""
    dy = _fit(dy, [(0, _TILE * count) for count in plan.tiles])
    # Slices, since XLA would transpose entry by entry.
    tiles = jnp.stack([dy[:, i::_TILE, j::_TILE] for j in range(_TILE) for i in range(_TILE)])
    matrix = _matrices(plan.r).of_columns_and_rows("a")
    return _apply(matrix, tiles).reshape(len(matrix), -1, dy.shape[-1])
