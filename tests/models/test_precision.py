"""Losses in bfloat16: what is computed in it, what is not, and how near that comes to float32."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.models.cifar import local_response_norm
from fedjax_sim.models.precision import follow

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
EPSILON = 2.0**-8  # the distance of bfloat16 numbers near 1


def images(*shape):
    return {"x": RNG.integers(0, 256, (4, *shape)).astype(np.uint8), "y": np.arange(4, dtype=np.int32)}


def lines():
    return dict(zip("xy", RNG.integers(1, 12, (2, 4, 6)).astype(np.uint16), strict=True))


TASKS = {
    "logistic": (fs.models.logistic_regression(), images(28, 28, 1)),
    "2nn": (fs.models.mnist_2nn(), images(28, 28, 1)),
    "cnn": (fs.models.mnist_cnn(10, (8, 12, 1)), images(8, 12, 1)),
    "dropout_cnn": (fs.models.dropout_cnn(10, (8, 10, 1)), images(8, 10, 1)),
    "cifar": (fs.models.cifar_cnn(10, (24, 24, 3), weight_decay=0.004), images(24, 24, 3)),
    "char_lstm": (fs.models.char_lstm(12, 6, padding=0, peepholes=False), lines()),
    "word_lstm": (fs.models.word_lstm(12, 6, output_embedding=8), lines()),
    "regressor": (
        fs.models.regressor(fs.models.MLP((5, 2)), (3,)),
        {"x": RNG.normal(size=(4, 3)).astype(np.float32), "y": np.ones((4, 2), np.float32)},
    ),
    "multilabel": (
        fs.models.multilabel(fs.models.MLP((5, 2)), (8, 8, 1)),
        images(8, 8, 1) | {"y": np.ones((4, 2), np.int32)},
    ),
}
# How far a gradient may lie from that of float32, relative to its norm. Rounding switches about a share
# EPSILON of the ReLUs and of the pooled maxima, each by all that it is worth, and the root of that share
# is the error that they make.
SMOOTH, SWITCHED = 6 * EPSILON, 3 * EPSILON**0.5
TOLERANCES = {"logistic": SMOOTH, "word_lstm": SMOOTH, "2nn": SWITCHED, "cnn": SWITCHED}


def gradient(task, params, batch, key):
    def mean(params):
        total, count = task.loss(params, batch, key)
        assert total.dtype == count.dtype == jnp.float32
        return total.sum() / count.sum()

    return jax.value_and_grad(mean)(params)


def weights(task):
    """Normal, about as large as at a start, biases too."""

    def draw(leaf):
        inputs = max(leaf.size // leaf.shape[-1], 100)
        return jnp.asarray(RNG.normal(size=leaf.shape) / inputs**0.5, jnp.float32)

    return jax.tree.map(draw, jax.eval_shape(task.init, jax.random.key(0)))


def operands(function, *arguments):
    """The types that matrix products and convolutions read in the program as it is handed to XLA."""
    lowered = jax.jit(function).lower(*arguments).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)\b.* : (\(.*?\)) ->", lowered)
    return {kind for pair in products for kind in re.findall(r"x([a-z]\w*)>", pair)}


@pytest.mark.parametrize("name", TASKS)
def test_every_product_of_a_loss_and_its_gradient_reads_bfloat16(name):
    task, batch = TASKS[name]
    arguments = jax.eval_shape(task.init, jax.random.key(0)), batch, jax.random.key(0)
    half = functools.partial(gradient, fs.models.bfloat16(task))
    assert operands(functools.partial(gradient, task), *arguments) == {"f32"}
    assert operands(half, *arguments) == {"bf16"}

    def lanes(params, batch, key):
        return jax.vmap(half)(*jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (params, batch, key)))

    assert operands(lanes, *arguments) == {"bf16"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("cnn", "word_lstm") else ()) for n in TOLERANCES],
)
def test_the_gradient_is_float32_and_near_that_of_float32(name):
    task, batch = TASKS[name]

    @jax.jit
    def both(params, key):
        return [gradient(t, params, batch, key) for t in (task, fs.models.bfloat16(task))]

    (loss, exact), (rounded_loss, rounded) = both(weights(task), jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    assert rounded_loss != loss
    np.testing.assert_allclose(rounded_loss, loss, rtol=EPSILON)
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, rounded, exact))
    assert gap < TOLERANCES[name] * optax.tree.norm(exact)


def test_local_response_normalisation_is_as_exact_as_its_numbers():
    x = jnp.asarray(30 * RNG.normal(size=(40, 12)), jnp.bfloat16)
    got = local_response_norm(x)
    assert got.dtype == jnp.bfloat16
    expected = local_response_norm(x.astype(jnp.float32))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=4 * EPSILON)


def test_small_steps_are_not_lost_between_bfloat16_numbers():
    """Each step moves the weights by less than bfloat16 can tell, and all of them by much more."""

    def loss(params, batch, key):
        return params["w"] * batch["x"], jnp.ones_like(batch["x"])

    task = fs.models.bfloat16(fs.Task(lambda key: {"w": jnp.ones(1)}, loss, None))
    batch = {"x": jnp.ones(1, jnp.bfloat16)}

    @jax.jit
    def descend(params):
        def step(params, _):
            slope = gradient(task, params, batch, jax.random.key(0))[1]
            return jax.tree.map(lambda p, d: p - EPSILON / 16 * d, params, slope), None

        return jax.lax.scan(step, params, length=64)[0]

    np.testing.assert_allclose(descend({"w": jnp.ones(1)})["w"], 1 - 4 * EPSILON)


@pytest.mark.slow
def test_fed_avg_learns_in_lanes_with_weights_in_float32(task, data):
    half = fs.models.bfloat16(task)
    assert (half.init, half.metrics) == (task.init, task.metrics)
    algorithm = fs.fed_avg(half, client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    where = toys.layout(lanes=2)
    state, first = toys.play(algorithm, data, where=where)
    state, last = toys.play(algorithm, data, state=state, rounds=20, where=where)
    assert float(last["train_loss"]) < 0.9 * float(first["train_loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_inputs_follow_the_parameters():
    half, whole = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
    assert follow(whole, {"w": half, "n": jnp.arange(2)}).dtype == jnp.bfloat16
    assert follow(half, {"w": whole}).dtype == jnp.float32
    assert follow(whole, {"w": half, "v": whole}).dtype == jnp.float32
    assert follow(jnp.arange(2), {"w": half}).dtype == jnp.int32
    assert follow(half, {}).dtype == jnp.bfloat16
