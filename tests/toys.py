"""Small things to test with: a ragged federation, a small task, one round of an algorithm."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import fedjax_sim as fs
from fedjax_sim.engine.placement import place
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation.cohorts import cohort_draws

FEATURES, CLASSES = 6, 3
SIZES = (7, 1, 0, 20, 4, 13, 5, 2, 9, 3)


def task(hidden=8):
    return fs.models.classifier(fs.models.MLP((hidden, CLASSES)), (FEATURES,))


def dataset(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype(np.float32)
    y = np.argmax(x[:, :CLASSES] + 0.3 * rng.normal(size=(n, CLASSES)), axis=1)
    return fs.data.from_arrays(x, y.astype(np.int32), num_classes=CLASSES)


def federation(sizes=SIZES, seed=0):
    """Clients of these sizes, whose rows follow one another."""
    cuts = np.cumsum((0, *sizes))
    rows = [np.arange(a, b) for a, b in itertools.pairwise(cuts)]
    return fs.data.federate(dataset(int(cuts[-1]), seed), rows)


def layout(lanes=1, devices=1):
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("clients",)) if devices > 1 else None
    return fs.Layout(lanes, mesh)


def draws(data, sampler):
    """How a run draws its cohorts, with a sampler or, by an integer, so many clients uniformly."""
    if isinstance(sampler, int):
        sampler = fs.participation.uniform(clients_per_round=sampler)
    return cohort_draws(sampler, data, jax.random.key(0))


def init(algorithm, seed=0, num_clients=10, **hparams):
    values = {k: jnp.float32(v) for k, v in (dict(algorithm.hparams) | hparams).items()}
    return client_memory.start(algorithm, num_clients, fs.Layout(), jax.random.key(seed), values)


def cohort(algorithm, ids, where=None):
    """A cohort of these clients, all of which begin with the current model."""
    ids = jnp.asarray(ids, jnp.int32)
    lag = None if algorithm.cohorts is None else jnp.zeros_like(ids)
    return fs.Cohort(ids, where or layout(), lag=lag)


def round_of(algorithm):
    """A compiled round, of the state in which the simulation keeps the clients' memory as well."""
    return _compiled(algorithm.round)


@functools.cache  # as `jax.jit(round_fn)` would be
def _compiled(round_fn):
    return jax.jit(functools.partial(client_memory.play, round_fn))


def play(algorithm, data, ids=None, *, state=None, rounds=1, where=None, seed=1):
    """Plays rounds of an algorithm with the same cohort; returns (state, info of the last)."""
    where = where or layout()
    ids = range(data.num_clients) if ids is None else ids
    state = init(algorithm, num_clients=data.num_clients) if state is None else state
    state, data, chosen = place((state, data, cohort(algorithm, list(ids), where)), where)
    round_fn = round_of(algorithm)
    info = None
    for r in range(rounds):
        key = place(jax.random.fold_in(jax.random.key(seed), r), where)
        state, info = round_fn(key, state, data, chosen)
    return state, info


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_same(a, b):
    """Equal to the bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def largest_difference(a, b):
    gaps = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)
    return max(jax.tree.leaves(gaps))
