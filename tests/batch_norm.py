"""A small model with BatchNorm, in linen and nnx, and its training by flax alone."""

import flax.linen as nn
import jax
import optax
import toys
from flax import nnx

import fedjax_sim as fs

MOMENTUM = 0.9


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x)
        return nn.Dense(toys.CLASSES)(nn.relu(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(toys.FEATURES, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=MOMENTUM, rngs=rngs)
        self.last = nnx.Linear(8, toys.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


MODELS = {"linen": Linen(), "nnx": Nnx}


def task(model="linen"):
    return fs.models.classifier(MODELS[model], (toys.FEATURES,))


@jax.jit
def gradient_and_state(params, state, x, y):
    """Returns the gradient of the linen model's mean loss on a batch, and its state after it."""

    def loss(params):
        logits, new = Linen().apply({"params": params, **state}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), dict(new)

    return jax.grad(loss, has_aux=True)(params)


def trained_by_hand(variables, x, y, *, epochs, batch_size, rate):
    """Returns the linen model after epochs of batches in the stored order."""
    params, state = variables
    for _ in range(epochs):
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)  # the last batch is short
            gradient, state = gradient_and_state(params, state, x[rows], y[rows])
            params = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
    return fs.Variables(params, state)
