"""Dropout acts in training alone; a model whose dropout would stay on or off is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx
from small_models import (
    DROPOUTS,
    HIDDEN,
    IsTraining,
    Linen,
    LinenDropout,
    Nnx,
    NnxFlag,
    batch_of,
    task_of,
)


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
