"""Minimal filtering: exact in exact arithmetic, near float64 in float32, used where it should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.sharding import Mesh, PartitionSpec

import fedjax_sim as fs
from fedjax_sim.models import conv2d
from fedjax_sim.models.ops import winograd

PADDINGS = {"SAME": lambda r: (((r - 1) // 2, r // 2),) * 2, "VALID": lambda r: ((0, 0),) * 2}
PRODUCTS = ("value", "input gradient", "kernel gradient")
# Maximum error, relative to the largest entry. Float32 errs by up to 1.5e-5 here.
TOLERANCE = 3e-5


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(r, padding, height, width, images=3):
    """x, kernel and dy; as many channels as tell an axis from another."""
    x, kernel = normal(0, images, height, width, 3), normal(1, r, r, 3, 5)
    cut = 0 if padding == "SAME" else r - 1
    return x, kernel, normal(2, images, height - cut, width - cut, 5)


def exact(padding, x, kernel, dy):
    """Sums over windows in float64, written out, and their gradients."""
    r = len(kernel)
    x, kernel, dy = (a.astype(np.float64) for a in (x, kernel, dy))
    pads = PADDINGS[padding](r)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    y, dx, dkernel = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    rows, columns = dy.shape[1:3]
    for i in range(r):
        for j in range(r):
            seen = np.s_[:, i : i + rows, j : j + columns]
            y += padded[seen] @ kernel[i, j]
            dx[seen] += dy @ kernel[i, j].T
            dkernel[i, j] = np.einsum("bhwi,bhwo->io", padded[seen], dy)
    (top, _), (left, _) = pads
    return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dkernel


def ours(padding, x, kernel, dy):
    pads = PADDINGS[padding](len(kernel))
    return (
        winograd.winograd_convolve(pads, x, kernel),
        winograd.input_gradient(pads, dy, kernel),
        winograd.kernel_gradient(pads, x, dy),
    )


def assert_near(found, wanted):
    for name, a, b in zip(PRODUCTS, found, wanted, strict=True):
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("r", "height", "width"), [(3, 8, 12), (3, 7, 6), (3, 3, 5), (5, 8, 12), (5, 7, 9), (5, 5, 14)]
)
def test_values_and_gradients_are_those_of_float64(r, height, width, padding):
    arrays = inputs(r, padding, height, width)
    assert_near(jax.jit(functools.partial(ours, padding))(*arrays), exact(padding, *arrays))


@pytest.mark.parametrize("images", [4, 5])
def test_many_images_are_taken_in_parts(images, monkeypatch):
    winograd.winograd_convolve.clear_cache()
    monkeypatch.setattr(winograd, "_MOST_IMAGES", 2)
    arrays = inputs(3, "SAME", 6, 7, images)
    assert_near(ours("SAME", *arrays), exact("SAME", *arrays))


@pytest.mark.parametrize("r", [3, 5])
def test_the_matrices_are_exact(r):
    matrices = winograd._matrices(r)
    tile, kernel = (np.random.default_rng(0).normal(size=n) for n in (winograd._TILE + r - 1, r))
    outputs = matrices.a.T @ ((matrices.g @ kernel) * (matrices.bt @ tile))
    np.testing.assert_allclose(outputs, np.correlate(tile, kernel, "valid"), rtol=0, atol=1e-12)


def value_and_gradients(conv, x, kernel):
    y, pull_back = jax.vjp(functools.partial(conv2d, conv=conv), x, kernel)
    return (y, *pull_back(jnp.cos(y)))


def products(function, *arguments):
    """The names of operations in what is compiled for a function."""
    return str(jax.make_jaxpr(function)(*arguments))


WIDE = (normal(0, 2, 6, 6, 32), normal(1, 3, 3, 32, 32) / 17)


@pytest.mark.parametrize("r", [3, 5])
def test_conv2d_uses_it_for_many_channels_unless_told_not_to(r):
    x, kernel = normal(0, 2, 6, 6, 32), normal(1, r, r, 32, 33) / (6 * r)
    automatic, direct = (jax.jit(functools.partial(value_and_gradients, c)) for c in ("auto", "direct"))
    assert "conv_general_dilated" not in products(automatic, x, kernel)
    assert "conv_general_dilated" in products(direct, x, kernel)
    assert_near(automatic(x, kernel), [np.asarray(a) for a in direct(x, kernel)])


@pytest.mark.parametrize(
    ("x", "kernel", "dtype"),
    [
        ((2, 6, 6, 15), (3, 3, 15, 32), jnp.float32),
        ((2, 6, 6, 32), (3, 3, 32, 15), jnp.float32),
        ((2, 6, 6, 32), (2, 2, 32, 32), jnp.float32),
        ((2, 6, 6, 32), (3, 5, 32, 32), jnp.float32),
        ((2, 6, 6, 32), (3, 3, 32, 32), jnp.bfloat16),
    ],
)
def test_other_layers_are_convolved_directly(x, kernel, dtype):
    arrays = jnp.zeros(x, dtype), jnp.zeros(kernel, dtype)
    text = products(functools.partial(value_and_gradients, "auto"), *arrays)
    assert text.count("= conv_general_dilated") == 3


def test_no_images_have_no_outputs():
    assert conv2d(jnp.zeros((0, 6, 6, 32)), jnp.zeros((3, 3, 32, 32))).shape == (0, 6, 6, 32)


def test_accelerators_convolve_directly(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    text = products(functools.partial(value_and_gradients, "auto"), *WIDE)
    assert text.count("= conv_general_dilated") == 3


def test_lanes_that_share_a_kernel_are_more_images():
    x, kernel = normal(0, 3, 2, 6, 6, 32), WIDE[1]
    lanes = jax.vmap(lambda x: value_and_gradients("auto", x, kernel))(x)
    for lane in range(3):
        alone = value_and_gradients("auto", x[lane], kernel)
        toys.assert_close([a[lane] for a in lanes], list(alone), rtol=1e-4, atol=1e-4)


def test_lanes_with_kernels_of_their_own_equal_one_at_a_time():
    x, kernel = normal(0, 3, 2, 6, 6, 32), normal(1, 3, 3, 3, 32, 32) / 17
    lanes = jax.vmap(functools.partial(value_and_gradients, "auto"))(x, kernel)
    for lane in range(3):
        alone = value_and_gradients("auto", x[lane], kernel[lane])
        toys.assert_close([a[lane] for a in lanes], list(alone), rtol=1e-4, atol=1e-4)


def test_each_device_convolves_its_own_images():
    x, kernel = normal(0, 4, 6, 6, 32), WIDE[1]
    mesh = Mesh(np.array(jax.devices()[:2]), ("clients",))
    images = PartitionSpec("clients")

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(images, PartitionSpec()), out_specs=images)
    def sharded(x, kernel):
        return conv2d(x, kernel)

    expected = np.concatenate([conv2d(half, kernel) for half in (x[:2], x[2:])])
    np.testing.assert_allclose(sharded(x, kernel), expected, rtol=1e-5, atol=1e-5)


def test_xla_shares_transforms_between_the_forward_pass_and_the_gradients():
    # Three products of tiles, and transforms of x (two), of the kernel, of outputs, of dy and of both
    # gradients: ten in all, where each product alone would make fourteen.
    step = jax.jit(functools.partial(value_and_gradients, "auto"))
    text = step.lower(*WIDE).compile().as_text()
    assert text.count(" dot(") == 10


@pytest.mark.parametrize(
    ("make", "shape", "automatic", "direct"),
    [
        (fs.models.mnist_cnn, (8, 8, 1), 1, 2),
        (fs.models.dropout_cnn, (8, 8, 1), 1, 2),
        (fs.models.cifar_cnn, (24, 24, 3), 1, 2),
        (fs.models.resnet18, (8, 8, 3), 3, 17),  # three halve the image
    ],
)
def test_models_pass_the_choice_on(make, shape, automatic, direct):
    batch = {"x": np.zeros((2, *shape), np.uint8), "y": np.zeros(2, np.int32)}
    for conv, count in (("auto", automatic), ("direct", direct)):
        task = make(10, shape, conv=conv)
        params = jax.eval_shape(task.init, jax.random.key(0))
        assert products(task.metrics, params, batch).count("= conv_general_dilated") == count
