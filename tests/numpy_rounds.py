"""Rounds in plain NumPy and float64: client by client, batch by batch, without lanes or padding.

The model is softmax regression on inputs of which each step hides a random part. Only what is random
comes from the library and JAX: the order of a client's examples, and the keys of its steps. Examples are
`{"x": [n, F], "y": [n], "terms": [n]}`; the loss of one is its cross-entropy times its terms.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.permutation import permutation

KEPT = 0.75  # of the inputs, in each step


class Totals(NamedTuple):
    """Sums over examples, once per epoch: of losses, of terms, of examples."""

    loss: float = 0.0
    count: float = 0.0
    examples: int = 0

    def plus(self, other):
        return Totals(*map(sum, zip(self, other, strict=True)))


@functools.partial(jax.jit, static_argnums=1)
def kept(key, shape):
    """Which inputs a step sees, `[B, F]` bool."""
    return jax.random.bernoulli(key, KEPT, shape)


_fold = jax.jit(jax.random.fold_in)


@functools.partial(jax.jit, static_argnums=2)
def _padded_order(key, n, room):
    return permutation(key, n)(jnp.arange(room, dtype=jnp.int32))


def order(key, n):
    """The permutation of `range(n)` that a key picks."""
    room = 64 * -(-n // 64)  # so that few programs serve all sizes
    return np.asarray(_padded_order(key, jnp.int32(n), room))[:n]


def summed_gradient(params, batch, keep):
    """The gradient of a batch's summed loss, and its `Totals`."""
    x, y, terms = batch["x"] * keep, batch["y"], batch["terms"]
    logits = x @ params["w"] + params["b"]
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    error = terms[:, None] * (np.exp(log_p) - np.eye(params["b"].size)[y])
    loss = -(terms * log_p[np.arange(len(y)), y]).sum()
    gradient = {"w": x.T @ error, "b": error.sum(axis=0)}
    return gradient, Totals(loss, terms.sum(), len(y))


class Descent:
    """Heavy-ball descent; without momentum it is plain descent."""

    def __init__(self, params, momentum=0.0):
        self.params, self.momentum = params, momentum
        self.trace = {name: np.zeros_like(value) for name, value in params.items()}

    def step(self, gradient, rate):
        for name, g in gradient.items():
            self.trace[name] = self.momentum * self.trace[name] + g
        self.params = {name: w - rate * self.trace[name] for name, w in self.params.items()}


def train(descent, examples, steps, rate):
    """Takes steps `(rows [b], keep [b, F])` along the gradient of a batch's mean loss."""
    totals = Totals()
    for rows, keep in steps:
        batch = {name: column[rows] for name, column in examples.items()}
        gradient, found = summed_gradient(descent.params, batch, keep)
        descent.step({name: g / found.count for name, g in gradient.items()}, rate)
        totals = totals.plus(found)
    return totals


def client_steps(key, n, features, *, epochs, batch_size, shuffle):
    """The steps of `E` epochs over a client's `n` examples."""
    order_key, step_key = _fold(key, 0), _fold(key, 1)
    if batch_size == math.inf:
        for epoch in range(epochs if n else 0):
            yield np.arange(n), kept_of_all(_fold(step_key, epoch), n, features)
        return
    i = 0
    for epoch in range(epochs if n else 0):
        visited = np.arange(n)
        if shuffle != "never":
            visited = order(order_key if shuffle == "once" else _fold(order_key, epoch), n)
        for first in range(0, n, batch_size):
            rows = visited[first : first + batch_size]
            yield rows, np.asarray(kept(_fold(step_key, i), (batch_size, features)))[: len(rows)]
            i += 1


def kept_of_all(key, n, features):
    """Which inputs a pass over `n` examples sees; pieces of 200, 50 and 10 have keys of their own."""
    parts, first = [], 0
    for width in (200, 50, 10):
        while n - first >= (width if width > 10 else 1):
            parts.append(np.asarray(kept(_fold(key, first), (width, features))))
            first += width
    return np.concatenate(parts)[:n]


def fed_avg_round(
    key, server, cohort, *, rate, epochs, batch_size, shuffle, momentum, weighting="examples"
):
    """One round of FedAvg; `server` is a `Descent` whose gradient is the mean way back.

    Args:
      key: of the round.
      server: has the model, and is moved.
      cohort: client id -> examples.
      rate: the clients'.
      epochs: `E`.
      batch_size: `B`, or `math.inf`.
      shuffle: "each_epoch", "once" or "never".
      momentum: the clients'.
      weighting: "examples" or "uniform".
    """
    way = {name: np.zeros_like(w) for name, w in server.params.items()}
    weight, totals = 0, Totals()
    for k, examples in cohort.items():
        n, features = examples["x"].shape
        local = Descent(server.params, momentum)
        steps = client_steps(
            _fold(key, k), n, features, epochs=epochs, batch_size=batch_size, shuffle=shuffle
        )
        totals = totals.plus(train(local, examples, steps, rate))
        own = n if weighting == "examples" else int(n > 0)
        weight += own
        for name, w in server.params.items():
            way[name] += own * (local.params[name] - w)
    server.step({name: -w / weight for name, w in way.items()}, 1.0)
    return totals


def fed_sgd_round(key, server, cohort, *, rate, weighting="examples"):
    """One round of FederatedSGD: a step along the mean of the clients' mean gradients."""
    mean = {name: np.zeros_like(w) for name, w in server.params.items()}
    weight, totals = 0, Totals()
    for k, examples in cohort.items():
        n, features = examples["x"].shape
        if n == 0:
            continue
        keep = kept_of_all(_fold(key, k), n, features)
        gradient, found = summed_gradient(server.params, examples, keep)
        own = n if weighting == "examples" else 1
        weight += own
        totals = totals.plus(found)
        for name, g in gradient.items():
            mean[name] += own * g / found.count
    server.step({name: g / weight for name, g in mean.items()}, rate)
    return totals


def sgd_round(key, order_key, descent, examples, *, first_step, steps, batch_size, rate):
    """Some steps of descent over all rows, epoch after epoch, in a new order each."""
    n, features = examples["x"].shape
    per_epoch = math.ceil(n / batch_size)

    def batches():
        for i in range(steps):
            epoch, within = divmod(first_step + i, per_epoch)
            rows = order(_fold(order_key, epoch), n)[within * batch_size : (within + 1) * batch_size]
            yield rows, np.asarray(kept(_fold(key, i), (batch_size, features)))[: len(rows)]

    return train(descent, examples, batches(), rate)


def averaging_round(key, learners, cohort, *, first_step, steps, batch_sizes, rate, weights=None):
    """Learners train on streams that begin again at their end, then all take their mean.

    Args:
      key: of the round.
      learners: a `Descent` each, which are moved.
      cohort: learner -> examples.
      first_step: the steps before this round.
      steps: `b`, of this round.
      batch_sizes: `B^i`, of each learner.
      rate: the learners'.
      weights: of the learners in the mean; equal by default.
    """
    step_key, _ = jax.random.split(key)
    slots, totals = max(batch_sizes), Totals()

    def stream(k, n, features):
        for i in range(steps):
            rows = (first_step + i) * batch_sizes[k] + np.arange(batch_sizes[k])
            keep = kept(_fold(_fold(step_key, k), i), (slots, features))
            yield rows % n, np.asarray(keep)[: batch_sizes[k]]

    for k, examples in cohort.items():
        totals = totals.plus(train(learners[k], examples, stream(k, *examples["x"].shape), rate))
    for name in learners[0].params:
        mean = np.average([learner.params[name] for learner in learners], axis=0, weights=weights)
        for learner in learners:
            learner.params[name] = mean
    return totals
