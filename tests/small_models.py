"""Small models of every kind that a classifier takes, with and without dropout."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import toys
from flax import nnx

from fedjax_sim.models import classifier

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
