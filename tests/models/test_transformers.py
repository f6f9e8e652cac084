"""Attention, rotary positions, the vision transformer and the decoder: equations, masks and sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax import lax
from jax.scipy.special import erf

import fedjax_sim as fs
from fedjax_sim.core import trees
from fedjax_sim.models.attention import Block, rotated

pytestmark = pytest.mark.usefixtures("quick_compilation")

PADDING = 10
RATE = 1e-3  # of steps so small that each lowers the loss
DECODER = fs.models.Transformer(symbols=11, layers=2, width=8, heads=2)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def count(task):
    return trees.num_params(jax.eval_shape(task.init, jax.random.key(0)))


def test_the_vision_transformers_parameters_are_the_published_ones():
    assert count(fs.models.vit(1000, (224, 224, 3), patch=16, layers=12)) == 5_717_416
    width, patches, numbers = 192, 64, 48
    formula = (numbers + 1) * width + width + (patches + 1) * width
    formula += 6 * (12 * width**2 + 13 * width) + 2 * width + (width + 1) * 10
    assert count(fs.models.vit()) == 2_693_578 == formula


def test_the_decoders_parameters_are_those_of_its_formula():
    assert count(fs.models.transformer()) == 826_368 == 258 * 128 + 4 * (12 * 128**2 + 13 * 128) + 256
    settings = {"layers": 1, "width": 6, "heads": 3}
    for length in (5, 50):
        task = fs.models.transformer(11, length, padding=10, **settings)
        assert count(task) == 11 * 6 + 12 * 36 + 13 * 6 + 12


def test_rotations_hang_on_distances_alone():
    q, k = random(0, 1, 1, 1, 8), random(1, 1, 1, 1, 8)
    places = 300
    turned_q, turned_k = (rotated(jnp.broadcast_to(x, (1, places, 1, 8)))[0, :, 0] for x in (q, k))
    scores = np.asarray(turned_q @ turned_k.T, np.float64)
    for distance in (-7, 0, 1, 90):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-3, atol=2e-4)
    assert np.ptp(scores[0]) > 0.5
    np.testing.assert_array_equal(turned_q[0], q[0, 0, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned_q, axis=-1), jnp.full(places, jnp.linalg.norm(q)), rtol=1e-5
    )


def test_rotations_are_those_of_the_paper():
    x = np.asarray(random(0, 1, 40, 1, 6), np.float64)
    got = np.asarray(rotated(jnp.asarray(x, jnp.float32)))
    for t in (0, 1, 39):
        for i in range(3):
            turn = np.exp(1j * t * 10_000 ** (-2 * i / 6))
            expected = complex(*x[0, t, 0, 2 * i : 2 * i + 2]) * turn
            np.testing.assert_allclose(
                got[0, t, 0, 2 * i : 2 * i + 2], [expected.real, expected.imag], rtol=1e-4, atol=1e-5
            )


def by_equations(params, x, heads, causal):
    """A block, position after position and head after head."""

    def norm(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * layer["scale"] + layer["bias"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    b, t, width = x.shape
    q, k, v = np.split(dense(norm(x, params["LayerNorm_0"]), params["Dense_0"]), 3, axis=-1)
    size = width // heads
    if causal:
        q, k = (
            np.asarray(rotated(jnp.asarray(a).reshape(b, t, heads, size))).reshape(x.shape)
            for a in (q, k)
        )
    seen = np.zeros_like(x)
    for image, place, head in np.ndindex(b, t, heads):
        part = slice(head * size, (head + 1) * size)
        until = place + 1 if causal else t
        weights = np.exp(k[image, :until, part] @ q[image, place, part] / np.sqrt(size))
        seen[image, place, part] = weights / weights.sum() @ v[image, :until, part]
    x = x + dense(seen, params["Dense_1"])
    hidden = dense(norm(x, params["LayerNorm_1"]), params["Dense_2"])
    hidden = hidden * (1 + np.asarray(erf(jnp.asarray(hidden / np.sqrt(2))))) / 2
    return x + dense(hidden, params["Dense_3"])


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_block_is_its_equations(causal):
    block, x = Block(heads=2, causal=causal), random(0, 2, 5, 8)
    params = block.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * random(2, *leaf.shape), params)
    got = jax.jit(block.apply)({"params": params}, x)
    expected = by_equations(jax.device_get(params), np.asarray(x), 2, causal)
    toys.assert_close(np.asarray(got), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_patches_are_those_of_a_convolution():
    module = fs.models.ViT(num_classes=3, patch=2, layers=1, width=4, heads=2)
    images = random(0, 2, 6, 4, 3)
    variables = module.init(jax.random.key(1), images)
    _, state = module.apply(variables, images, capture_intermediates=True)
    layer = variables["params"]["patches"]
    kernel = layer["kernel"].reshape(2, 2, 3, 4)
    names = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=names)
    got = state["intermediates"]["patches"]["__call__"][0]
    toys.assert_close(got, expected.reshape(2, 6, 4), rtol=1e-4, atol=1e-5)


@functools.cache
def start():
    x = jnp.zeros((1, 6), jnp.int32)
    return jax.jit(DECODER.init)(jax.random.key(0), x)


def test_no_position_sees_a_later_one():
    x = jax.random.randint(jax.random.key(1), (2, 6), 0, 10)
    apply = jax.jit(DECODER.apply)
    before = np.asarray(apply(start(), x))
    for t in range(1, 6):
        after = np.asarray(apply(start(), x.at[0, t].set((x[0, t] + 1) % 10)))
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        np.testing.assert_array_equal(after[1], before[1])
        assert (np.abs(after[0, t:] - before[0, t:]).max(-1) > 0).all()


def test_padding_does_not_count():
    task = fs.models.language_model(DECODER, 6, PADDING)
    y = np.full((3, 6), PADDING, np.uint16)
    y[0, :3], y[2] = (1, 2, 3), (1, 2, 3, 4, 5, 6)
    x = np.concatenate([np.full((3, 1), 9, np.uint16), y[:, :-1]], axis=1)
    other = x.copy()
    other[0, 4:], other[1, 1:] = 7, 5  # beyond the end of a text

    @jax.jit
    def results(x):
        def mean(params):
            total, count = task.loss(params, {"x": x, "y": y}, jax.random.key(0))
            return total.sum() / count.sum(), count

        return jax.value_and_grad(mean, has_aux=True)(start()["params"])

    toys.assert_same(results(x), results(other))
    (_, counted), _ = results(x)
    assert counted.tolist() == [3, 0, 6]


def texts(num, seed):
    """Each symbol is the one before plus one, modulo ten."""
    first = np.random.default_rng(seed).integers(0, 10, (num, 1))
    symbols = (first + np.arange(7)) % 10
    return symbols[:, :-1].astype(np.uint16), symbols[:, 1:].astype(np.int32)


def images(num, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, num)


MODULES = {
    "transformer": (fs.models.Transformer(symbols=11, layers=1, width=8, heads=2), texts),
    "vit": (fs.models.ViT(3, patch=4, layers=1, width=8, heads=2), images),
    "resnet18": (fs.models.ResNet18(3, widths=(4, 6)), images),
}


def task_of(name):
    module, _ = MODULES[name]
    if name == "transformer":
        return fs.models.language_model(module, 6, PADDING)
    return fs.models.classifier(module, (8, 8, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_clients_side_by_side_train_as_each_alone(name):
    task, (_, examples) = task_of(name), MODULES[name]
    clients = fs.data.from_clients({k: examples(4 + 2 * k, k) for k in range(2)}, num_classes=11)
    algorithm = fs.fed_avg(task, client_lr=RATE, local_epochs=2, batch_size=float("inf"))
    begin = toys.init(algorithm).params
    together, _ = toys.play(algorithm, clients, where=toys.layout(2))

    @jax.jit
    def step(params, batch):
        def mean(params):
            total, count = task.loss(params, batch, jax.random.key(0))
            return total.sum() / count.sum()

        value, gradient = jax.value_and_grad(mean)(params)
        return jax.tree.map(lambda w, g: w - RATE * g, params, gradient), value

    ends, losses = [], []
    for own in clients:
        params = begin
        for _ in range(2):
            params, value = step(params, own)
            losses.append(float(value))
        ends.append(params)
    mean = jax.tree.map(lambda a, b: (4 * a + 6 * b) / 10, *ends)
    updates = [jax.tree.map(jnp.subtract, end, begin) for end in (together.params, mean)]
    toys.assert_close(*updates, rtol=1e-2, atol=1e-6)
    assert toys.largest_difference(together.params, begin) > 1e-4
    assert losses[1] < losses[0]
    assert losses[3] < losses[2]


@pytest.mark.parametrize("name", MODULES)
def test_every_layer_computes_in_the_dtype_of_its_inputs(name):
    module, examples = MODULES[name]
    x = jnp.asarray(examples(2, 0)[0])
    floats, x = (x, x) if name == "transformer" else (x.astype(t) for t in (jnp.float32, jnp.bfloat16))

    def outputs(key):
        params = module.init(key, floats)["params"]
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        logits, state = module.apply({"params": params}, x, capture_intermediates=True)
        return logits, state["intermediates"]

    # The normalisations compute in float32 by implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        found = jax.eval_shape(outputs, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.models.vit(heads=5), "width is 192 for 5 heads; wanted a multiple of 5"),
        (lambda: fs.models.vit(layers=0), "layers is 0; wanted a whole number"),
        (
            lambda: fs.models.vit(10, (28, 30, 1)),
            r"input_shape is \(28, 30, 1\); .* multiples of patch=4",
        ),
        (
            lambda: fs.models.vit(10, (784,)),
            r"input_shape is \(784,\); wanted \(height, width, channels\)",
        ),
        (lambda: fs.models.transformer(width=12, heads=4), "width is 12 for 4 heads; .* multiple of 8"),
        (lambda: fs.models.transformer(heads=0), "width is 128 for 0 heads; wanted a multiple of"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
