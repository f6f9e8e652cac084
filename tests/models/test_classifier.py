"""One call takes any model; what cannot be averaged over clients is refused with the cure."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

import fedjax_sim as fs
from fedjax_sim.models import classifier, scale_pixels

HIDDEN = 8


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(toys.CLASSES)(x)


class LinenDropout(nn.Module):
    """Has the parameters of `Linen`; a subclass says what its flag is called."""

    def layers(self, x, deterministic):
        x = nn.Dropout(0.5)(nn.relu(nn.Dense(HIDDEN)(x)), deterministic=deterministic)
        return nn.Dense(toys.CLASSES)(x)


class Train(LinenDropout):
    @nn.compact
    def __call__(self, x, train):
        return self.layers(x, not train)


class Training(LinenDropout):
    @nn.compact
    def __call__(self, x, *, training=True):
        return self.layers(x, not training)


class Deterministic(LinenDropout):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return self.layers(x, deterministic)


class IsTraining(LinenDropout):
    @nn.compact
    def __call__(self, x, is_training=False):
        return self.layers(x, not is_training)


class IsTrain(LinenDropout):
    @nn.compact
    def __call__(self, x, is_train: bool = False):
        return self.layers(x, not is_train)


class Nnx(nnx.Module):
    def __init__(self, rngs, rate=None):
        self.hidden = nnx.Linear(toys.FEATURES, HIDDEN, rngs=rngs)
        self.out = nnx.Linear(HIDDEN, toys.CLASSES, rngs=rngs)
        self.dropout = None if rate is None else nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden(x))
        return self.out(x if self.dropout is None else self.dropout(x))


def nnx_dropout(rngs):
    return Nnx(rngs, rate=0.5)


class NnxFlag(Nnx):
    """Tells its dropout at each call, which takes precedence over `train()` and `eval()`."""

    def __init__(self, rngs):
        super().__init__(rngs, rate=0.5)

    def __call__(self, x, training: bool = False):
        x = self.dropout(nnx.relu(self.hidden(x)), deterministic=not training)
        return self.out(x)


class NnxCompiled(Nnx):
    """Its dropout is called on a copy that `nnx.jit` makes."""

    def __init__(self, rngs):
        super().__init__(rngs, rate=0.5)

    def __call__(self, x):
        return self.out(nnx.jit(lambda drop, x: drop(x))(self.dropout, nnx.relu(self.hidden(x))))


def bare_init(key):
    keys = jax.random.split(key)
    shapes = {"hidden": (toys.FEATURES, HIDDEN), "out": (HIDDEN, toys.CLASSES)}
    return {
        name: {"kernel": 0.3 * jax.random.normal(k, shape), "bias": jnp.zeros(shape[1])}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def bare_apply(params, x):
    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"][None]

    return dense(params["out"], jax.nn.relu(dense(params["hidden"], x)))


class Transformed(NamedTuple):
    """As haiku hands out its functions."""

    init: Any
    apply: Any


MODELS = {
    "linen": Linen(),
    "nnx": Nnx,
    "bare": (bare_init, bare_apply),
    "haiku-like": Transformed(bare_init, bare_apply),
}
# Each with a model of the same parameters that drops nothing.
DROPOUTS = {
    "train": (Train(), Linen()),
    "training": (Training(), Linen()),
    "deterministic": (Deterministic(), Linen()),
    "is_training": (IsTraining(), Linen()),
    "is_train": (IsTrain(), Linen()),
    "nnx": (nnx_dropout, Nnx),
    "nnx flag": (NnxFlag, Nnx),
    "nnx compiled": (NnxCompiled, Nnx),
}


def task_of(model):
    return classifier(model, (toys.FEATURES,))


def batch_of(n=16):
    return jax.tree.map(jnp.asarray, toys.dataset(n).examples)


DEAR = ("bare", "train", "nnx dropout")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in DEAR else ())
        for n in (*MODELS, "train", "nnx dropout")
    ],
)
def test_any_model_learns_by_fed_avg(name, data):
    model = {**MODELS, "train": Train(), "nnx dropout": nnx_dropout}[name]
    algorithm = fs.fed_avg(task_of(model), client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    where = toys.layout(lanes=2)
    state, first = toys.play(algorithm, data, where=where)
    _, last = toys.play(algorithm, data, state=state, rounds=20, where=where)
    assert float(last["train_loss"]) < 0.9 * float(first["train_loss"])


def test_the_same_weights_give_the_same_loss_in_every_framework():
    weights = bare_init(jax.random.key(3))
    weights["hidden"]["bias"] = jnp.arange(HIDDEN, dtype=jnp.float32) / HIDDEN
    tasks = {name: task_of(model) for name, model in MODELS.items()}
    linen = {"Dense_0": weights["hidden"], "Dense_1": weights["out"]}
    state = tasks["nnx"].init(jax.random.key(0))
    nnx.replace_by_pure_dict(state, weights)
    params = {"linen": linen, "nnx": state, "bare": weights, "haiku-like": weights}

    batch, key = batch_of(), jax.random.key(0)
    outputs = {
        name: (task.loss(params[name], batch, key), task.metrics(params[name], batch))
        for name, task in tasks.items()
    }
    for name in MODELS:
        toys.assert_close(outputs[name], outputs["bare"])

    logits = np.asarray(bare_apply(weights, batch["x"]), np.float64)
    y = np.asarray(batch["y"])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    (total, count), metrics = outputs["bare"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_array_equal(count, np.ones(len(y)))
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"][0], logits.argmax(1) == y)
    np.testing.assert_array_equal(metrics["accuracy"][1], np.ones(len(y)))


@pytest.mark.parametrize("name", MODELS)
def test_the_key_picks_the_start(name):
    task = task_of(MODELS[name])
    first, again, other = (task.init(jax.random.key(seed)) for seed in (1, 1, 2))
    toys.assert_same(first, again)
    assert toys.largest_difference(first, other) > 0.1


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_follows_the_key_in_training_and_is_off_in_evaluation(name):
    model, without = DROPOUTS[name]
    task, plain = task_of(model), task_of(without)
    params = task.init(jax.random.key(0))
    batch = batch_of()

    first, again, other = (task.loss(params, batch, jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01

    assert jax.tree.structure(params) == jax.tree.structure(plain.init(jax.random.key(0)))
    toys.assert_close(task.metrics(params, batch), plain.metrics(params, batch))
    assert np.abs(first - plain.loss(params, batch, jax.random.key(1))[0]).max() > 0.01


class LinenAttribute(LinenDropout):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return self.layers(x, not self.training)


class LinenForgets(LinenDropout):
    """Takes the flag, but does not hand it on to the module inside."""

    @nn.compact
    def __call__(self, x, train):
        return IsTraining()(x)


class LinenOneOfTwo(LinenDropout):
    @nn.compact
    def __call__(self, x, train):
        return self.layers(nn.Dropout(0.1, deterministic=True)(x), not train)


class LinenAttention(nn.Module):
    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        layer = nn.MultiHeadDotProductAttention(
            2, dropout_rate=0.1, deterministic=self.deterministic, out_features=toys.CLASSES
        )
        return layer(x[:, None, :])[:, 0]


class NnxFixed(Nnx):
    def __init__(self, rngs, off, rate=0.5):
        super().__init__(rngs, rate)
        self.off = off

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x)), deterministic=self.off))


class NnxSkips(Nnx):
    def __init__(self, rngs):
        super().__init__(rngs, rate=0.5)
        self.training = False

    def __call__(self, x):
        x = nnx.relu(self.hidden(x))
        return self.out(self.dropout(x) if self.training else x)


class NnxOneOfTwo(NnxFlag):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.second = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, training: bool = False):
        return super().__call__(self.second(x, deterministic=True), training)


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.MultiHeadAttention(
            2, toys.FEATURES, qkv_features=HIDDEN, dropout_rate=0.1, rngs=rngs, decode=False
        )
        self.out = nnx.Linear(toys.FEATURES, toys.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(self.layer(x[:, None, :], deterministic=True)[:, 0])


@pytest.mark.parametrize(
    "model",
    [
        LinenAttribute(),
        LinenForgets(),
        LinenOneOfTwo(),
        LinenAttention(),
        lambda rngs: NnxFixed(rngs, off=True),
        NnxSkips,
        NnxOneOfTwo,
        NnxAttention,
    ],
)
def test_dropout_that_stays_off_in_training_is_refused(model):
    with pytest.raises(ValueError, match=r"dropout of .* off in training; have .* is_training"):
        task_of(model)


@pytest.mark.parametrize(
    "model",
    [
        LinenAttribute(training=True),
        LinenAttention(deterministic=False),
        lambda rngs: NnxFixed(rngs, off=False),
    ],
)
def test_dropout_that_stays_on_in_evaluation_is_refused(model):
    with pytest.raises(ValueError, match=r"dropout of .* on in evaluation; have .* is_training"):
        task_of(model)


def test_a_rate_of_zero_may_stay_off():
    task = task_of(lambda rngs: NnxFixed(rngs, off=True, rate=0.0))
    losses = task.loss(task.init(jax.random.key(0)), batch_of(), jax.random.key(1))[0]
    assert np.isfinite(losses).all()


class LinenOtherFlag(LinenDropout):
    @nn.compact
    def __call__(self, x, use_dropout=False):
        return self.layers(x, not use_dropout)


class LinenMask(Linen):
    @nn.compact
    def __call__(self, x, mask):
        return super().__call__(x * mask)


class NnxOtherFlag(NnxFlag):
    def __call__(self, x, use_dropout=False):
        return super().__call__(x, use_dropout)


@pytest.mark.parametrize(
    ("model", "name"),
    [(LinenOtherFlag(), "use_dropout"), (LinenMask(), "mask"), (NnxOtherFlag, "use_dropout")],
)
def test_an_argument_that_nothing_sets_is_refused(model, name):
    with pytest.raises(ValueError, match=f"__call__ takes '{name}', which nothing sets; .*is_training"):
        task_of(model)


def test_an_argument_with_another_default_keeps_it():
    class Optional(Linen):
        @nn.compact
        def __call__(self, x, mask=None, scale=2.0, **others):
            return scale * nn.Dense(toys.CLASSES)(x if mask is None else x * mask)

    task = task_of(Optional())
    assert task.loss(task.init(jax.random.key(0)), batch_of(), jax.random.key(1))[0].shape == (16,)


def test_each_dropout_of_an_nnx_module_drops_its_own():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))
            self.weight = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            ones = jnp.ones((x.shape[0], 64))
            return (self.first(ones) - self.second(ones)) * self.weight[...].reshape(1, 1)

    total, _ = task_of(Twice).loss(
        task_of(Twice).init(jax.random.key(0)), batch_of(1), jax.random.key(5)
    )
    # Equal masks would cancel, which leaves equal logits.
    assert abs(float(total[0]) - np.log(64)) > 1e-3


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(toys.CLASSES)(nn.BatchNorm(use_running_average=not train)(x))


class NnxBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(toys.FEATURES, rngs=rngs)
        self.out = nnx.Linear(toys.FEATURES, toys.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x))


@pytest.mark.parametrize(
    ("model", "state"), [(LinenBatchNorm(), "batch_stats"), (NnxBatchNorm, "BatchStat")]
)
def test_batch_statistics_are_refused(model, state):
    with pytest.raises(ValueError, match=f"state beside its parameters: {state}.*GroupNorm"):
        task_of(model)


def test_group_norm_takes_the_place_of_batch_norm():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            # It lines its scale up with the features by itself.
            with jax.numpy_rank_promotion("allow"):
                return nn.Dense(toys.CLASSES)(nn.GroupNorm(num_groups=2)(x))

    task = task_of(Normed())
    total, _ = task.loss(task.init(jax.random.key(0)), batch_of(), jax.random.key(1))
    assert np.isfinite(total).all()


def test_a_built_nnx_module_is_refused():
    with pytest.raises(ValueError, match="already has its parameters; pass a function"):
        task_of(Nnx(nnx.Rngs(0)))


@pytest.mark.parametrize("model", [3, "mlp", None, [bare_init, bare_apply], (bare_init, 3), (1, 2, 3)])
def test_a_thing_of_another_kind_is_refused(model):
    with pytest.raises(ValueError, match=f"model of type {type(model).__name__}; wanted"):
        task_of(model)


def test_a_function_that_returns_no_module_is_refused():
    with pytest.raises(ValueError, match="wanted an nnx module"):
        task_of(lambda rngs: 3)


@pytest.mark.parametrize(
    "apply",
    [
        lambda params, x: x.reshape(-1, 2, 3),
        lambda params, x: x.sum(axis=1),
        lambda params, x: jnp.concatenate([x, x]),
        lambda params, x: {"logits": x},
    ],
)
def test_what_is_no_vector_of_logits_for_each_example_is_refused(apply):
    with pytest.raises(ValueError, match=r"wanted logits \[B, classes\]"):
        task_of((lambda key: {}, apply))


def test_bytes_are_scaled_and_floats_are_not():
    bytes_ = jnp.array([[0, 51, 255]], jnp.uint8)
    scaled = scale_pixels(bytes_)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, [[0, 0.2, 1]], rtol=1e-6)
    for dtype in (jnp.float32, jnp.bfloat16):
        floats = jnp.array([[-3, 0.5, 300]], dtype)
        toys.assert_same(scale_pixels(floats), floats)
        assert scale_pixels(floats).dtype == dtype


def test_inputs_are_decoded_in_training_and_evaluation():
    params = bare_init(jax.random.key(0))
    batch = batch_of()
    stored = {"x": jnp.clip(batch["x"] * 50 + 100, 0, 255).astype(jnp.uint8), "y": batch["y"]}

    def outputs(task, batch):
        return task.loss(params, batch, jax.random.key(0)), task.metrics(params, batch)

    decoded = {"x": stored["x"].astype(jnp.float32) / 255, "y": batch["y"]}
    task = task_of((bare_init, bare_apply))
    toys.assert_close(outputs(task, stored), outputs(task, decoded))

    centred = classifier(
        (bare_init, bare_apply), (toys.FEATURES,), decode=lambda x: x.astype(jnp.float32) / 128 - 1
    )
    decoded["x"] = stored["x"].astype(jnp.float32) / 128 - 1
    toys.assert_close(outputs(centred, stored), outputs(task, decoded))


def test_decoding_may_change_the_shape():
    task = fs.models.classifier(fs.models.MLP((3,)), (8, 8, 1), decode=lambda x: x[:, 2:6, 2:6] / 1.0)
    params = task.init(jax.random.key(0))
    assert params["Dense_0"]["kernel"].shape == (16, 3)
    batch = {"x": jnp.ones((5, 8, 8, 1), jnp.float32), "y": jnp.zeros(5, jnp.int32)}
    assert task.loss(params, batch, jax.random.key(0))[0].shape == (5,)


def test_a_class_in_place_of_a_module_is_refused():
    with pytest.raises(ValueError, match="got the class MLP; pass a module"):
        fs.models.classifier(fs.models.MLP, (4,))
