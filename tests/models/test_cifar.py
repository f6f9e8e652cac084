"""The CIFAR network: its size, start and layers, and what happens to images before it sees them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from jax import lax

import fedjax_sim as fs
from fedjax_sim.core import trees
from fedjax_sim.models import CifarCNN, max_pool3
from fedjax_sim.models.cifar import central, distort, local_response_norm, standardise

RNG = np.random.default_rng(0)
TASK = fs.models.cifar_cnn()
# Channels of unlike means, so that contrast shows.
IMAGES = (RNG.integers(0, 120, (4, 32, 32, 3)) + np.array([0, 60, 135])).astype(np.uint8)
BATCH = {"x": IMAGES, "y": np.array([3, 0, 9, 3], np.int32)}
SPREADS = {"conv1": 0.05, "conv2": 0.05, "local3": 0.04, "local4": 0.04, "softmax": 1 / 192}
distorted = jax.jit(distort)
# Large programs that run once: what LLVM would save is less than the time it takes.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(quick_jit(TASK.init)(jax.random.key(0)))


def test_the_number_of_parameters_is_the_tutorials():
    shapes = jax.eval_shape(TASK.init, jax.random.key(0))
    layers = [trees.num_params(shapes[name]) for name in SPREADS]
    assert layers == [4_864, 102_464, 885_120, 73_920, 1_930]
    assert trees.num_params(shapes) == 1_068_298
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    of_100 = jax.eval_shape(fs.models.cifar_cnn(100, (28, 24, 1)).init, jax.random.key(0))
    assert trees.num_params(of_100) == 1_068_298 + 90 * 193 - 2 * 25 * 64


def test_the_start_is_the_tutorials(params):
    biases = {"conv1": 0.0, "conv2": 0.1, "local3": 0.1, "local4": 0.1, "softmax": 0.0}
    for name, layer in params.items():
        np.testing.assert_array_equal(layer["bias"], np.float32(biases[name]))
        kernel = layer["kernel"]
        assert 1.9 < np.abs(kernel).max() / SPREADS[name] <= 2
        # Of a normal distribution without what lies beyond two standard deviations.
        np.testing.assert_allclose(kernel.std() / SPREADS[name], 0.8796, rtol=0.03)
        assert abs(kernel.mean()) < 4 * SPREADS[name] / np.sqrt(kernel.size)


def reference_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


@jax.jit
def pooled(x, dy):
    """Of lanes, as the engine would."""
    both = [lambda x, dy, pool=pool: jax.vjp(pool, x)[1](dy)[0] for pool in (max_pool3, reference_pool)]
    values = [max_pool3(x[0]), reference_pool(x[0])]
    return values, [both[0](x[0], dy[0]), both[1](x[0], dy[0]), *(jax.vmap(f)(x, dy)[0] for f in both)]


# Few distinct values give windows of many equal maxima, up to all nine.
@pytest.mark.parametrize("values", ["normal", "few"])
def test_pooling_and_its_gradient_equal_reduce_window(values):
    x = normal(2, 3, 8, 12, 5)
    x = jnp.round(x) if values == "few" else x
    # Whole numbers, whose sums are the same in any order.
    dy = jnp.asarray(RNG.integers(-9, 10, (2, 3, 4, 6, 5)), jnp.float32)
    (value, expected), (gradient, *others) = pooled(x, dy)
    toys.assert_same(value, expected)
    for other in others:
        toys.assert_same(gradient, other)


def test_an_odd_image_cannot_be_pooled():
    with pytest.raises(ValueError, match="max_pool3 got images of 5 x 4; wanted even"):
        max_pool3(jnp.zeros((1, 5, 4, 2)))


def test_response_normalisation_is_its_definition():
    x = 30 * np.asarray(normal(2, 3, 12), np.float64)
    expected = np.empty_like(x)
    for c in range(12):
        total = (x[..., max(c - 4, 0) : c + 5] ** 2).sum(axis=-1)
        expected[..., c] = x[..., c] / (1 + 0.001 / 9 * total) ** 0.75
    assert np.abs(expected / x).min() < 0.8
    toys.assert_close(local_response_norm(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)


class PlainCNN(nn.Module):
    """The tutorial's network, written as the tutorial has it."""

    @nn.compact
    def __call__(self, x):
        def pool(x):
            return nn.max_pool(x, (3, 3), (2, 2), "SAME")

        def norm(x):
            pads = ((0, 0), (0, 0), (0, 0), (4, 4))
            total = lax.reduce_window(x**2, 0.0, lax.add, (1, 1, 1, 9), (1, 1, 1, 1), pads)
            return x / (1.0 + 0.001 / 9.0 * total) ** 0.75

        x = norm(pool(nn.relu(nn.Conv(64, (5, 5), name="conv1")(x))))
        x = pool(norm(nn.relu(nn.Conv(64, (5, 5), name="conv2")(x))))
        x = nn.relu(nn.Dense(384, name="local3")(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="softmax")(nn.relu(nn.Dense(192, name="local4")(x)))


def test_the_network_and_its_gradient_are_those_of_the_tutorials_layers():
    ours, plain = CifarCNN(10), PlainCNN()
    x, y = 3 * normal(2, 8, 12, 3), jnp.array([0, 3], jnp.int32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    # Not the start itself: activations are large enough for the normalisation to matter.
    params = jax.tree.map(lambda s: 0.1 * normal(*s.shape), shapes)

    def loss(model, params):
        logits = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    @quick_jit
    def both(params):
        return [jax.grad(loss, argnums=1, has_aux=True)(model, params) for model in (ours, plain)]

    toys.assert_close(*both(params), rtol=1e-4, atol=1e-4)


def standard(x):
    """By NumPy, one image."""
    x = x.astype(np.float64)
    return (x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size))


def test_images_are_standardised_one_by_one():
    quiet = np.full((24, 24, 3), 7.0)
    quiet[0, 0, 0] += 1e-3  # less than the least standard deviation
    images = np.stack([IMAGES[0, :24, :24], np.full((24, 24, 3), 7.0), quiet])
    got = standardise(jnp.asarray(images, jnp.float32))
    toys.assert_close(got, np.stack([standard(image) for image in images]), rtol=1e-3, atol=1e-5)
    # So brightness, which adds the same to all numbers of an image, leaves no trace.
    toys.assert_close(standardise(jnp.asarray(images + 40, jnp.float32)), got, rtol=1e-3, atol=1e-4)


def by_channel(x):
    """What brightness, contrast and standardisation leave alone: `[24, 24, 3]` to `[1728]`."""
    x = x.astype(np.float64)
    return ((x - x.mean((0, 1))) / x.std((0, 1))).ravel()


def test_distortions_are_crops_mirrored_or_not_in_other_contrast():
    got = np.asarray(distorted(np.repeat(IMAGES[:1], 96, axis=0), jax.random.key(0)))
    assert got.shape == (96, 24, 24, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((1, 2, 3)), 1, rtol=1e-5)

    places = [(i, j, mirrored) for i in range(9) for j in range(9) for mirrored in (False, True)]
    crops = [IMAGES[0, i : i + 24, j : j + 24][:, :: -1 if m else 1] for i, j, m in places]
    alike = np.stack([by_channel(x) for x in got]) @ np.stack([by_channel(x) for x in crops]).T / 1728
    chosen = alike.argmax(axis=1)
    np.testing.assert_allclose(alike.max(axis=1), 1, rtol=1e-5)
    top, left, mirrored = np.array(places)[chosen].T
    assert set(top) == set(left) == set(range(9))
    assert 0.35 < mirrored.mean() < 0.65

    def contrast(x):
        x = x.astype(np.float64)
        return x[..., 0].std() / (x[..., 2].mean() - x[..., 0].mean())

    factors = np.array([contrast(x) / contrast(crops[c]) for x, c in zip(got, chosen, strict=True)])
    assert 0.2 <= factors.min() < 0.3
    assert 1.7 < factors.max() <= 1.8
    assert 0.9 < factors.mean() < 1.1


def test_distortions_hang_on_the_key_and_the_row_alone():
    batch = np.tile(IMAGES, (24, 1, 1, 1))
    first, again, other = (distorted(batch, jax.random.key(seed)) for seed in (1, 1, 2))
    toys.assert_same(first, again)
    assert (np.abs(first - other).max(axis=(1, 2, 3)) > 0.1).all()
    toys.assert_close(distorted(batch[:3], jax.random.key(1)), first[:3], rtol=1e-4, atol=1e-5)


@quick_jit
def evaluated(params, batch, crops):
    return TASK.metrics(params, batch), CifarCNN(10).apply({"params": params}, crops)


def test_evaluation_sees_central_crops(params):
    crops = np.stack([standard(image[4:28, 4:28]) for image in IMAGES]).astype(np.float32)
    toys.assert_close(central(jnp.asarray(IMAGES)), crops, rtol=1e-4, atol=1e-5)

    got, logits = evaluated(params, BATCH, crops)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["y"])
    toys.assert_close(got["loss"], (losses, jnp.ones(4)), rtol=1e-4)
    toys.assert_same(got["accuracy"][0], (logits.argmax(-1) == BATCH["y"]).astype(jnp.float32))
    x = IMAGES.copy()
    x[:, :4], x[:, :, 28:] = 0, 255
    toys.assert_same(evaluated(params, BATCH | {"x": x}, crops)[0], got)


@pytest.mark.slow
def test_lanes_with_weights_of_their_own_equal_each_lane_alone(params):
    def mean_loss(params, batch, key):
        total, count = TASK.loss(params, batch, key)
        return total.sum() / count.sum()

    step = jax.value_and_grad(mean_loss)
    weights = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), params)
    batches = jax.tree.map(lambda column: column.reshape(2, 2, *column.shape[1:]), BATCH)
    keys = jax.random.split(jax.random.key(3), 2)
    lanes = jax.device_get(quick_jit(jax.vmap(step))(weights, batches, keys))
    alone = quick_jit(step)
    for i in range(2):
        got, w, batch = (jax.tree.map(lambda leaf, i=i: leaf[i], t) for t in (lanes, weights, batches))
        toys.assert_close(got, jax.device_get(alone(w, batch, keys[i])), 1e-3, 1e-5)


def test_weight_decay_is_of_the_weights_of_the_two_hidden_layers_alone(params):
    tasks = TASK, fs.models.cifar_cnn(weight_decay=0.004)

    @quick_jit
    def losses(params):
        return [task.loss(params, BATCH, jax.random.key(0)) for task in tasks]

    (plain, ones), (total, count) = losses(params)
    kernels = [params[layer]["kernel"].astype(np.float64) for layer in ("local3", "local4")]
    penalty = 0.002 * sum((kernel**2).sum() for kernel in kernels)
    np.testing.assert_allclose(total - plain, np.full(4, penalty), rtol=1e-5)
    toys.assert_same((ones, count), (jnp.ones(4), jnp.ones(4)))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"input_shape is \(28, 20, 1\); wanted .* 24 x 24"):
        fs.models.cifar_cnn(10, (28, 20, 1))
    with pytest.raises(ValueError, match="weight_decay is -1; wanted a finite number, at least 0"):
        fs.models.cifar_cnn(weight_decay=-1)
