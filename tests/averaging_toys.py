"""Learners to test with: ten of them, thirteen examples each."""

import jax
import jax.numpy as jnp
import numpy as np
import toys

import fedjax_sim as fs

M, N, B = 10, 13, 2


def data():
    return toys.federation((N,) * M)


def algorithm(protocol, *, optimizer=None, **settings):
    settings = {"num_learners": M, "batch_size": B, "client_lr": 0.3, "stream": "repeat"} | settings
    chosen = {} if optimizer is None else {"optimizer": optimizer}
    return fs.dynamic_averaging(toys.task(), protocol, **chosen, **settings)


def states(algorithm, rounds, *, state=None, where=None, first=0, **hparams):
    """The states after each of some rounds, and what the rounds report."""
    where = where or toys.layout()
    state = toys.init(algorithm, **hparams) if state is None else state
    state = fs.engine.place(state, where, algorithm.specs)
    rows = fs.engine.place(jax.tree.map(jnp.asarray, data()), where)
    cohort = fs.Cohort(fs.engine.place(jnp.arange(M), where), where)
    found, infos = [], []
    round_fn = toys.round_of(algorithm)
    for r in range(first, first + rounds):
        key = fs.engine.place(jax.random.fold_in(jax.random.key(1), r), where)
        state, info = round_fn(key, state, rows, cohort)
        found.append(state)
        infos.append(jax.device_get(info))
    return found, infos


def flat(models):
    """Stacked models as rows, `[m, P]` float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(models)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def flat_one(model):
    """A model as a vector, `[P]` float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(model)])


def distances(models, point):
    """`||f_i - point||^2`, `[m]`."""
    return np.square(flat(models) - flat_one(point)).sum(axis=1)
