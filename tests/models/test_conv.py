"""Convolution and pooling against what XLA and autodiff say, in every way the engine may call them."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.models import conv2d, max_pool2
from fedjax_sim.models.ops import lane_conv

PADDINGS = ["SAME", "VALID"]
LANES = 3


def reference_conv(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(height, width, *, lanes_of_x=(), lanes_of_kernel=()):
    x = normal(0, *lanes_of_x, 4, 8, 10, 3)
    return x, normal(1, *lanes_of_kernel, height, width, 3, 5)


def value_and_gradients(conv, padding, x, kernel):
    """`(y, dx, dkernel)`, the gradients of a sum that weighs every output differently."""
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, padding=padding), x, kernel)
    return (y, *pull_back(normal(9, *y.shape)))


def direct(x, kernel, padding):
    return conv2d(x, kernel, padding=padding, conv="direct")


# At the top, so that tests share what they compile.
compiled = jax.jit(value_and_gradients, static_argnums=(0, 1))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("height", "width"), [(5, 5), (3, 3), (4, 4), (5, 2)])
def test_one_kernel_equals_xla_and_autodiff_to_the_bit(height, width, padding):
    x, kernel = inputs(height, width)
    toys.assert_same(compiled(direct, padding, x, kernel), compiled(reference_conv, padding, x, kernel))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("height", "width"), [(3, 3), (5, 2), (5, 5)])
def test_few_channels_equal_xla_and_autodiff(height, width, padding):
    x, kernel = inputs(height, width)
    ours = compiled(conv2d, padding, x, kernel)
    toys.assert_close(ours, compiled(reference_conv, padding, x, kernel), rtol=1e-5, atol=1e-5)


def test_equal_to_the_bit_step_by_step_too():
    x, kernel = inputs(4, 4)
    ours = value_and_gradients(direct, "SAME", x, kernel)
    toys.assert_same(ours, value_and_gradients(reference_conv, "SAME", x, kernel))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("x_batched", "kernel_batched"), [(True, True), (True, False), (False, True)])
def test_lanes_equal_one_lane_at_a_time(x_batched, kernel_batched, padding):
    x, kernel = inputs(4, 3, lanes_of_x=(LANES,) * x_batched, lanes_of_kernel=(LANES,) * kernel_batched)
    axes = (0 if x_batched else None, 0 if kernel_batched else None)
    lanes = jax.jit(jax.vmap(lambda x, k: value_and_gradients(conv2d, padding, x, k), axes))(x, kernel)
    for i in range(LANES):
        one = (x[i] if x_batched else x, kernel[i] if kernel_batched else kernel)
        expected = compiled(reference_conv, padding, *one)
        toys.assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes), expected, 1e-4, 1e-4)


@pytest.mark.parametrize(("x_batched", "kernel_batched"), [(True, True), (True, False), (False, True)])
def test_the_gradient_through_lanes_sums_over_what_they_share(x_batched, kernel_batched):
    x, kernel = inputs(3, 4, lanes_of_x=(LANES,) * x_batched, lanes_of_kernel=(LANES,) * kernel_batched)
    axes = (0 if x_batched else None, 0 if kernel_batched else None)

    def loss(conv, x, kernel):
        return jnp.sin(jax.vmap(lambda x, k: conv(x, k, padding="SAME"), axes)(x, kernel)).sum()

    @jax.jit
    def both(*arguments):
        return [jax.grad(loss, argnums=(1, 2))(conv, *arguments) for conv in (conv2d, reference_conv)]

    toys.assert_close(*both(x, kernel), 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("outer", "inner"), [((0, 0), (0, None)), ((None, 0), (0, None)), ((0, None), (None, 0))]
)
def test_lanes_within_lanes(outer, inner):
    """A sweep over seeds puts a second vmap around the lanes of clients."""
    lanes = [tuple(2 for axis in axes if axis == 0) for axes in zip(outer, inner, strict=True)]
    x, kernel = normal(0, *lanes[0], 2, 4, 4, 2), normal(1, *lanes[1], 3, 3, 2, 3)

    def twice(conv, x, kernel):
        inside = jax.vmap(lambda x, k: value_and_gradients(conv, "SAME", x, k), inner)
        return jax.vmap(inside, outer)(x, kernel)

    both = jax.jit(lambda *arguments: [twice(conv, *arguments) for conv in (conv2d, reference_conv)])
    toys.assert_close(*both(x, kernel), 1e-4, 1e-4)


def descend(conv, kernel, images):
    """Gradient steps in a scan, as a client takes them."""

    def step(kernel, x):
        gradient = jax.grad(lambda k: jnp.sin(conv(x, k, padding="SAME")).mean())(kernel)
        return kernel - gradient, None

    return lax.scan(step, kernel, images)[0]


def test_steps_inside_a_compiled_loop():
    images, kernel = normal(0, 4, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    ours = jax.jit(lambda k, x: descend(conv2d, k, x))(kernel, images)
    toys.assert_close(ours, jax.jit(lambda k, x: descend(reference_conv, k, x))(kernel, images), 1e-4)


@pytest.mark.parametrize("lanes", [1, 2])
def test_steps_inside_shard_map(lanes):
    images, kernel = normal(0, 2, lanes, 4, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("clients",))

    def on_one_device(kernel, images):
        def client(x):
            return descend(conv2d, kernel, x)

        return client(images[0, 0])[None, None] if lanes == 1 else jax.vmap(client)(images[0])[None]

    spread = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("clients")),
        out_specs=PartitionSpec("clients"),
        check_vma=False,
    )
    ours = jax.jit(spread)(kernel, images)
    one = jax.jit(lambda x: descend(reference_conv, kernel, x))
    for device, lane in itertools.product(range(2), range(lanes)):
        toys.assert_close(ours[device, lane], one(images[device, lane]), 1e-4)


def grouped(fn, *arguments):
    """The convolutions of a program that fall into groups."""
    text = jax.jit(fn).lower(*arguments).as_text()
    assert "convolution" in text or "dot_general" in text
    counts = re.findall(r"(?:feature|batch)_group_count\s*=\s*(\d+)", text)
    return [count for count in counts if int(count) > 1]


@pytest.mark.parametrize("x_batched", [True, False])
def test_no_grouped_convolution_with_a_kernel_per_lane_unless_chosen(x_batched, monkeypatch):
    monkeypatch.setattr(lane_conv, "choose", lambda *_: "patches")
    x, kernels = inputs(5, 5, lanes_of_x=(LANES,) * x_batched, lanes_of_kernel=(LANES,))

    def gradients(conv):
        def loss(x, kernel):
            return jnp.sin(conv(x, kernel, padding="SAME")).sum()

        return jax.vmap(jax.grad(loss, argnums=(0, 1)), (0 if x_batched else None, 0))

    assert grouped(gradients(reference_conv), x, kernels)
    assert not grouped(gradients(conv2d), x, kernels)


def reference_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pool_by_reshape(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


NOISE = np.random.default_rng(0).normal(size=(3, 6, 8, 5)).astype(np.float32)
IMAGES = {
    "random": NOISE,
    # Few distinct values: windows with two, three and four equal maxima.
    "ties": np.round(NOISE),
    "all equal": np.zeros_like(NOISE),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pooling_equals_xla_and_autodiff_to_the_bit(name):
    x = jnp.asarray(IMAGES[name])
    y, pull_back = jax.vjp(max_pool2, x)
    expected, pull_back_by_reshape = jax.vjp(pool_by_reshape, x)
    toys.assert_same(y, reference_pool(x))
    toys.assert_same(y, expected)
    dy = normal(2, *y.shape)
    toys.assert_same(pull_back(dy), pull_back_by_reshape(dy))


def test_pooling_under_jit_and_lanes():
    x, dy = jnp.asarray(IMAGES["ties"][:, None]), normal(1, 3, 1, 3, 4, 5)

    def both(pool):
        return jax.jit(jax.vmap(lambda x, dy: jax.vjp(pool, x)[1](dy)))(x, dy)

    toys.assert_same(both(max_pool2), both(pool_by_reshape))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((8, 8, 3), (3, 3, 3, 4)),
        ((2, 8, 8, 3), (3, 3, 3)),
        ((2, 8, 8, 3), (3, 3, 2, 4)),
        ((2, 8, 8, 3), (3, 3, 1, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, kernel):
    with pytest.raises(ValueError, match=r"conv2d got x .* with the same Ci"):
        conv2d(jnp.zeros(x), jnp.zeros(kernel))


@pytest.mark.parametrize("padding", ["same", "FULL", 1, None])
def test_an_unknown_padding_is_refused(padding):
    with pytest.raises(ValueError, match="wanted 'SAME' or 'VALID'"):
        conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), padding=padding)


def test_another_way_to_convolve_is_refused():
    with pytest.raises(ValueError, match="conv is 'winograd'; wanted 'auto' or 'direct'"):
        conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), conv="winograd")


@pytest.mark.parametrize("shape", [(1, 5, 4, 1), (1, 4, 5, 1), (1, 7, 7, 2)])
def test_an_odd_image_cannot_be_pooled(shape):
    with pytest.raises(ValueError, match=f"{shape[1]} x {shape[2]}; wanted even"):
        max_pool2(jnp.zeros(shape))
    with pytest.raises(ValueError, match="wanted even"):
        jax.grad(lambda x: max_pool2(x).sum())(jnp.zeros(shape))
