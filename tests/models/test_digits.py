"""The paper's models: their sizes, their start, and the network they claim to be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.core import trees

MODELS = {
    "mnist_2nn": (fs.models.mnist_2nn, 199_210),
    "mnist_cnn": (fs.models.mnist_cnn, 1_663_370),
    "logistic_regression": (fs.models.logistic_regression, 7_850),
    "dropout_cnn": (fs.models.dropout_cnn, 1_199_882),
}


def abstract_params(task):
    return jax.eval_shape(task.init, jax.random.key(0))


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_parameters_is_the_papers(name):
    make, expected = MODELS[name]
    params = abstract_params(make())
    assert trees.num_params(params) == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: fs.models.mnist_2nn(62), 784 * 200 + 200 + 200 * 200 + 200 + 200 * 62 + 62),
        (lambda: fs.models.mnist_2nn(10, (20,)), 20 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        (lambda: fs.models.logistic_regression(2, (5, 3)), 15 * 2 + 2),
        (lambda: fs.models.mnist_cnn(62), 1_663_370 + 52 * 513),
        (lambda: fs.models.dropout_cnn(62), 1_199_882 + 52 * 129),
        (
            lambda: fs.models.dropout_cnn(10, (32, 32, 3)),
            (27 * 32 + 32) + (9 * 32 * 64 + 64) + (14 * 14 * 64 * 128 + 128) + (128 * 10 + 10),
        ),
        (
            lambda: fs.models.mnist_cnn(100, (32, 24, 3)),
            (75 * 32 + 32) + (25 * 32 * 64 + 64) + (8 * 6 * 64 * 512 + 512) + (512 * 100 + 100),
        ),
    ],
)
def test_other_classes_and_shapes(make, expected):
    assert trees.num_params(abstract_params(make())) == expected


def test_an_image_that_cannot_be_pooled_twice_is_refused_when_built():
    with pytest.raises(ValueError, match="15 x 15; wanted even"):
        fs.models.mnist_cnn(10, (30, 30, 1))
    with pytest.raises(ValueError, match="27 x 24; wanted even"):
        fs.models.dropout_cnn(10, (31, 28, 1))


class PlainCNN(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def renamed(params):
    """Ours in the names of `PlainCNN`."""
    convolutions = {f"Conv_{i}": params[f"ConvPool_{i}"] for i in range(2)}
    return convolutions | params["MLP_0"]


def test_the_cnn_is_convolution_relu_pooling_twice_and_two_dense_layers():
    ours, plain = fs.models.CNN(4), PlainCNN(4)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 8, 12, 1)), jnp.float32)
    y = jnp.array([0, 3, 1], jnp.int32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    # Not the start itself: biases other than zero show where they are added.
    params = jax.tree.map(lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape), jnp.float32), shapes)

    def loss(model, params):
        logits = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    @jax.jit
    def both(params):
        grad = jax.grad(loss, argnums=1, has_aux=True)
        return grad(ours, params), grad(plain, renamed(params))

    (gradient, logits), (expected_gradient, expected_logits) = both(params)
    toys.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    toys.assert_close(renamed(gradient), expected_gradient, rtol=1e-4, atol=1e-4)


class PlainDropoutCNN(nn.Module):
    """As pfl-research has it, less its dropout."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(4)(x)


def test_the_network_with_dropout_is_two_convolutions_one_pooling_and_two_dense_layers():
    task, plain = fs.models.dropout_cnn(4, (8, 10, 1)), PlainDropoutCNN()
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(3, 8, 10, 1)).astype(np.float32), "y": np.array([0, 3, 1], np.int32)}
    params = jax.tree.map(
        lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape), jnp.float32), abstract_params(task)
    )

    def expected(params):
        logits = plain.apply({"params": params}, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).sum()

    @jax.jit
    def both(params):
        names = {name.replace("ConvPool", "Conv"): layer for name, layer in params.items()}
        ours = jax.grad(lambda params: task.metrics(params, batch)["loss"][0].sum())(params)
        return list(ours.values()), list(jax.grad(expected)(names).values())

    toys.assert_close(*both(params), rtol=1e-4, atol=1e-4)


def test_a_quarter_of_what_is_pooled_and_half_of_the_units_are_dropped_by_key_and_row():
    # Pooled to one pixel of 64 ones, each read by one of the 128 units, each read by one of 128 classes.
    model = fs.models.DropoutCNN(128)
    x = jnp.zeros((64, 6, 6, 1))
    params = {
        "ConvPool_0": {"kernel": jnp.zeros((3, 3, 1, 32)), "bias": jnp.zeros(32)},
        "ConvPool_1": {"kernel": jnp.zeros((3, 3, 32, 64)), "bias": jnp.ones(64)},
        "Dense_0": {"kernel": jnp.eye(64, 128), "bias": (jnp.arange(128) >= 64).astype(jnp.float32)},
        "Dense_1": {"kernel": jnp.eye(128), "bias": jnp.zeros(128)},
    }

    @jax.jit
    def dropped(x, key):
        return model.apply({"params": params}, x, train=True, rngs={"dropout": key})

    first, again, other = (np.asarray(dropped(x, jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=1).all()
    np.testing.assert_array_equal(dropped(x[:3], jax.random.key(1)), first[:3])
    for units, kept in ((first[:, :64], 0.75 * 0.5), (first[:, 64:], 0.5)):
        np.testing.assert_allclose(np.unique(units), [0, 1 / kept], rtol=1e-6)
        np.testing.assert_allclose((units > 0).mean(), kept, atol=0.03)  # of 4,096
    np.testing.assert_array_equal(model.apply({"params": params}, x, train=False), np.ones((64, 128)))


def fans(shape):
    """What goes into and comes out of one unit of a kernel `[..., Ci, Co]`."""
    window = int(np.prod(shape[:-2]))
    return window * shape[-2], window * shape[-1]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "dropout_cnn" else ()) for n in MODELS]
)
def test_kernels_start_glorot_uniform_and_biases_zero(name):
    params = MODELS[name][0]().init(jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        if kind == "bias":
            assert not np.asarray(leaf).any()
            continue
        assert kind == "kernel"
        bound = np.sqrt(6 / sum(fans(leaf.shape)))
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.98 * bound
        # Uniform, where a normal of this spread would leave the bounds.
        np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.05)
        assert abs(np.mean(leaf)) < 4 * bound / np.sqrt(3 * leaf.size)


def test_the_key_picks_the_start():
    task = fs.models.logistic_regression()
    first, again, other = (task.init(jax.random.key(seed)) for seed in (0, 0, 1))
    toys.assert_same(first, again)
    assert toys.largest_difference(first, other) > 0.01
