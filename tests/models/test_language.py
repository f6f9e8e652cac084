"""The LSTM against its equations and autodiff, and language models as tasks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.data.sources.messages import PADDING as PAD
from fedjax_sim.data.sources.messages import UNKNOWN
from fedjax_sim.models.ops.lstm import LSTM

T, B, INPUTS, UNITS = 4, 2, 3, 5
PADDING = 9


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def params(peepholes):
    start = LSTM(UNITS, peepholes).init(jax.random.key(1), random(0, T, B, INPUTS))["params"]
    return jax.tree.map(lambda leaf: leaf + 0.3 * random(2, *leaf.shape), start)


def by_equations(params, x):
    """One step after the other as the equations stand, differentiated by JAX."""
    kernel, bias = params["kernel"], params["bias"]
    w_i, w_f, w_o = params.get("peepholes", jnp.zeros((3, UNITS)))
    outputs = []
    for sequence in range(B):
        h = c = jnp.zeros(UNITS)
        steps = []
        for t in range(T):
            z = jnp.concatenate([x[t, sequence], h]) @ kernel + bias
            z_i, z_g, z_f, z_o = z.reshape(4, UNITS)
            i, f = jax.nn.sigmoid(z_i + w_i * c), jax.nn.sigmoid(z_f + w_f * c + 1.0)
            c = f * c + i * jnp.tanh(z_g)
            h = jax.nn.sigmoid(z_o + w_o * c) * jnp.tanh(c)
            steps.append(h)
        outputs.append(jnp.stack(steps))
    return jnp.stack(outputs, axis=1)


@pytest.mark.parametrize("peepholes", [True, False])
def test_the_layer_and_its_gradients_are_those_of_the_equations(peepholes):
    x, weights = random(3, T, B, INPUTS), random(4, T, B, UNITS)
    layer = LSTM(UNITS, peepholes)

    def ours(params, x):
        return (weights * layer.apply({"params": params}, x)).sum()

    def theirs(params, x):
        return (weights * by_equations(params, x)).sum()

    results = [jax.jit(jax.value_and_grad(f, (0, 1)))(params(peepholes), x) for f in (ours, theirs)]
    toys.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lanes_with_weights_of_their_own_are_separate_layers():
    x, layer = random(3, 2, T, B, INPUTS), LSTM(UNITS)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params(True))

    def gradient(params, x):
        return jax.grad(lambda p: jnp.square(layer.apply({"params": p}, x)).sum())(params)

    together = jax.vmap(gradient)(both, x)
    for lane in range(2):
        alone = gradient(jax.tree.map(lambda leaf, i=lane: leaf[i], both), x[lane])
        toys.assert_close(
            jax.tree.map(lambda leaf, i=lane: leaf[i], together), alone, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("task", "count"),
    [
        (fs.models.char_lstm(), 866_578),
        (fs.models.char_lstm(peepholes=False), 866_578 - 2 * 3 * 256),
        (fs.models.word_lstm(), 4_950_544),
        (fs.models.word_lstm(peepholes=False), 4_950_544 - 3 * 256),
        (fs.models.word_lstm(output_embedding=192), 4_359_696),
    ],
)
def test_parameters_are_the_papers(task, count):
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_word_models_symbols_are_those_of_messages():
    defaults = inspect.signature(fs.models.word_lstm).parameters
    assert (defaults["padding"].default, defaults["unknown"].default) == (PAD, UNKNOWN)
    of_messages = inspect.signature(fs.data.messages).parameters
    for ours, theirs in (("symbols", "vocabulary_size"), ("length", "length")):
        assert defaults[ours].default == of_messages[theirs].default
    task = fs.models.word_lstm()
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert params["embedding"].shape == (10_000, 192)
    assert params["Dense_0"]["kernel"].shape == (256, 10_000)
    batch = {"x": np.zeros((3, 10), np.uint16), "y": np.zeros((3, 10), np.int32)}
    total, count = jax.eval_shape(task.metrics, params, batch)["accuracy"]
    assert total.shape == count.shape == (3,)


def test_the_output_embedding_lies_between_units_and_scores():
    module = fs.models.StackedLSTM(10, embedding=8, units=16, layers=1, output_embedding=4)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    shapes = jax.tree.map(jnp.shape, {name: params[name] for name in ("projection", "Dense_0")})
    assert shapes == {"projection": {"kernel": (16, 4)}, "Dense_0": {"kernel": (4, 10), "bias": (10,)}}


@functools.cache
def task():
    module = fs.models.StackedLSTM(symbols=10, embedding=8, units=16, layers=2)
    return fs.models.language_model(module, length=6, padding=PADDING)


@functools.cache
def start():
    return jax.jit(task().init)(jax.random.key(0))


def lines(*texts):
    """Lines of symbols 0 to 8; x starts with 9, which y has as padding."""
    y = np.full((len(texts), 6), PADDING, np.uint16)
    for row, text in zip(y, texts, strict=True):
        row[: len(text)] = text
    x = np.concatenate([np.full((len(texts), 1), PADDING, np.uint16), y[:, :-1]], axis=1)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def test_a_loss_counts_real_symbols_only():
    total, count = jax.jit(task().loss)(
        start(), lines((1, 2, 3), (), (1, 2, 3, 4, 5, 6)), jax.random.key(0)
    )
    np.testing.assert_array_equal(count, [3, 0, 6])
    assert total[1] == 0
    np.testing.assert_allclose(total[0] / 3, np.log(10), rtol=0.2)  # near chance before training


def test_predicting_that_a_word_is_unknown_is_never_right():
    def metrics(unknown):
        scores = jax.nn.one_hot(jnp.array([[1, 2, 3, 4, 5, 1]]), 10)  # of every position, in every row

        class Fixed(fs.models.StackedLSTM):
            def __call__(self, x):
                return jnp.broadcast_to(scores, (*x.shape, 10))

        fixed = fs.models.language_model(Fixed(10, 1, 1, 1), 6, PADDING, unknown)
        return fixed.metrics({}, lines((1, 2, 3, 3, 1), (1,), (2,)))

    right, count = metrics(None)["accuracy"]
    np.testing.assert_array_equal(right, [3, 1, 0])
    np.testing.assert_array_equal(count, [5, 1, 1])
    without, same_count = metrics(1)["accuracy"]
    np.testing.assert_array_equal(without, [2, 0, 0])
    np.testing.assert_array_equal(same_count, count)
    toys.assert_same(metrics(1)["loss"], metrics(None)["loss"])


def test_what_lies_beyond_the_end_of_a_line_does_not_matter():
    batch = lines((1, 2, 3))
    other = batch | {"x": batch["x"].at[0, 4:].set(7)}

    @jax.jit
    def results(batch):
        def mean(params):
            total, count = task().loss(params, batch, jax.random.key(0))
            return total.sum() / count.sum()

        return jax.value_and_grad(mean)(start()), task().metrics(start(), batch)

    toys.assert_same(results(batch), results(other))


def test_no_line_learns_from_a_later_symbol_or_another_line():
    a, b = lines((1, 2, 3), (4, 5)), lines((1, 2, 3), (6, 7))
    metrics = jax.jit(task().metrics)
    for name, (total, _) in metrics(start(), a).items():
        assert total[0] == metrics(start(), b)[name][0][0], name


@pytest.mark.slow
def test_it_learns_a_rule():
    """Each symbol is the one before plus one, modulo eight."""
    rng = np.random.default_rng(0)
    texts = [[(first + i) % 8 for i in range(6)] for first in rng.integers(0, 8, 40)]
    examples = {name: np.asarray(column) for name, column in lines(*texts).items()}
    dataset = fs.data.from_arrays(examples["x"], examples["y"], num_classes=10)
    clients = fs.data.federate(dataset, fs.data.iid(num_clients=4))
    algorithm = fs.fed_avg(task(), client_lr=1.0, local_epochs=20, batch_size=5)
    evaluate = fs.evaluator(task(), dataset, layout=toys.layout())
    result = fs.simulate(
        algorithm,
        clients,
        key=jax.random.key(0),
        num_rounds=10,
        client_fraction=1.0,
        evaluate=evaluate,
        eval_every=10,
        layout=toys.layout(),
    )
    assert result.rows[-1]["test_accuracy"] > 0.8  # the first symbol of six can only be guessed
