"""Models that read integers, and language models of every kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

import fedjax_sim as fs

WORDS, LENGTH, CLASSES, PAD = 11, 4, 3, 0
RNG = np.random.default_rng(0)


class Bag(nn.Module):
    """The mean of embedded words, and one layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.Embed(WORDS, 5)(x).mean(axis=1))


def examples(n=12, dtype=np.uint16):
    x = RNG.integers(0, WORDS, (n, LENGTH)).astype(dtype)
    return {"x": x, "y": RNG.integers(0, CLASSES, n).astype(np.int32)}


def test_integers_reach_the_model_as_they_are():
    task = fs.models.classifier(Bag(), (LENGTH,), integer_inputs=True)
    params, batch = task.init(jax.random.key(0)), examples()
    embedded = np.asarray(params["Embed_0"]["embedding"])[batch["x"]].mean(axis=1)
    logits = embedded @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    expected = -jax.nn.log_softmax(logits)[np.arange(12), batch["y"]]
    np.testing.assert_allclose(task.loss(params, batch, jax.random.key(0))[0], expected, rtol=1e-5)


def test_an_embedding_that_gets_floats_is_told_what_to_write():
    with pytest.raises(ValueError, match=r"fails on floats and accepts integers, .*integer_inputs=True"):
        fs.models.classifier(Bag(), (LENGTH,))
    with pytest.raises(ValueError, match=r"model of type int; wanted"):  # no other error is hidden
        fs.models.classifier(3, (LENGTH,))


def test_decoding_may_make_the_integers():
    task = fs.models.classifier(Bag(), (LENGTH + 1,), decode=lambda x: x[:, 1:].astype(jnp.int32))
    plain = fs.models.classifier(Bag(), (LENGTH,), integer_inputs=True)
    params, batch = task.init(jax.random.key(0)), examples()
    marked = {"x": np.pad(batch["x"], [(0, 0), (1, 0)]), "y": batch["y"]}
    toys.assert_same(task.metrics(params, marked), plain.metrics(params, batch))


@pytest.mark.parametrize(
    ("integer_inputs", "dtype", "message"),
    [
        (False, np.int32, r"'x' holds int32, and only uint8 is read as pixels.*integer_inputs=True"),
        (True, np.float32, r"'x' holds float32, and the model reads integers.*astype\(np.int32\)"),
    ],
)
def test_inputs_of_the_other_kind_are_refused_before_training(integer_inputs, dtype, message):
    def model(rngs):
        return nnx.Linear(LENGTH, CLASSES, rngs=rngs)

    task = fs.models.classifier(
        Bag() if integer_inputs else model, (LENGTH,), integer_inputs=integer_inputs
    )
    own = examples(dtype=dtype)
    clients = fs.data.from_clients({"ann": (own["x"], own["y"])}, num_classes=CLASSES)
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    with pytest.raises(ValueError, match=message):
        fs.simulate(algorithm, clients, key=jax.random.key(0), num_rounds=1, client_fraction=1.0)
    with pytest.raises(ValueError, match=message):
        fs.evaluator(task, clients, layout=toys.layout())


def test_booleans_are_zeros_and_ones():
    scaled = fs.models.scale_pixels(jnp.array([[True, False]]))
    np.testing.assert_array_equal(scaled, np.array([[1, 0]], np.float32))


class Next(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(self.rate, deterministic=not train)(nn.Embed(WORDS, 5)(x))
        return nn.Dense(WORDS)(x)


class NnxNext(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.embed = nnx.Embed(WORDS, 5, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(5, WORDS, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.embed(x)))


def lines():
    x = RNG.integers(1, WORDS, (6, LENGTH))
    return {"x": x.astype(np.uint8), "y": np.roll(x, -1, axis=1).astype(np.int32)}


@pytest.mark.parametrize(
    ("model", "without"),
    [(Next(0.5), Next()), (NnxNext, lambda rngs: NnxNext(rngs, rate=0.0))],
    ids=["linen", "nnx"],
)
def test_a_language_models_dropout_is_on_in_training_alone(model, without):
    task, plain = (fs.models.language_model(each, LENGTH, PAD) for each in (model, without))
    params, batch = task.init(jax.random.key(0)), lines()
    first, again, other = (task.loss(params, batch, jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    toys.assert_close(task.metrics(params, batch), plain.metrics(params, batch))


def test_a_language_model_may_be_a_pair():
    def init(key):
        return jax.random.normal(key, (WORDS, WORDS))

    task = fs.models.language_model((init, lambda table, x: table[x]), LENGTH, PAD)
    table, batch = init(jax.random.key(0)), lines()
    likeliest = np.argmax(table, axis=1)[batch["x"]]
    np.testing.assert_array_equal(task.predict(table, batch), likeliest)
    right, count = task.metrics(table, batch)["accuracy"]
    np.testing.assert_array_equal(right, (likeliest == batch["y"]).sum(axis=1))
    np.testing.assert_array_equal(count, (batch["y"] != PAD).sum(axis=1))


@pytest.mark.parametrize("cut", [lambda x: x[:, :2], lambda x: x[:, 0]])
def test_logits_of_another_length_are_refused(cut):
    with pytest.raises(ValueError, match=rf"wanted logits \[B, {LENGTH}, symbols\]"):
        fs.models.language_model(
            (lambda key: jnp.zeros((WORDS, WORDS)), lambda table, x: cut(table[x])), LENGTH, PAD
        )
