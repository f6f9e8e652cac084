"""Two works of a client, one after the other: equal to each by itself, on any lanes and devices."""

import ditto
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")

ETA = jnp.float32(0.1)


def client(data, k):
    start, stop = data.offsets[k : k + 2]
    examples = jax.tree.map(jnp.asarray, dict(data.examples))
    return fs.Client(examples, *map(jnp.int32, (start, stop - start, k)))


def local(task, epochs=1, **settings):
    settings = {"batch_size": 4, "shuffle": "never"} | settings
    return fs.local_training(task, optax.sgd, local_epochs=epochs, **settings)


def test_an_epoch_after_an_epoch_is_two_epochs(task, data):
    twice = fs.engine.sequence(local(task), local(task), link=lambda _, trained: trained[0])
    params, me, key = task.init(jax.random.key(0)), client(data, 3), jax.random.key(1)
    (once, losses_1), (w, losses_2) = jax.jit(twice.run)((params, ()), me, key, (ETA, ETA))
    expected, losses = jax.jit(local(task, epochs=2).run)(params, me, key, ETA)
    toys.assert_close(w, expected, rtol=1e-6)
    assert toys.largest_difference(once, w) > 1e-3
    toys.assert_close(jax.tree.map(jnp.add, losses_1, losses_2), losses)
    sizes, keys = jnp.array([20, 3]), jax.random.split(key, 2)
    np.testing.assert_array_equal(twice.slots(sizes, keys), [[20, 20], [4, 4]])


def test_works_draw_apart(task, data):
    work = local(task, shuffle="each_epoch")
    params, me, key = task.init(jax.random.key(0)), client(data, 3), jax.random.key(1)
    pair = fs.engine.sequence(work, work)
    (first, _), (second, _) = jax.jit(pair.run)((params, params), me, key, (ETA, ETA))
    assert toys.largest_difference(first, second) > 1e-5


def personal(task, **changes):
    settings = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.1, "pull": 0.0}
    return ditto.ditto(task, **(settings | changes))


def test_ditto_without_a_pull_is_fed_avg_beside_training_alone(task, data):
    """Clients' own models never see one another; 3 rounds of 2 epochs are 6 epochs alone."""
    state, _ = toys.play(personal(task, shuffle="never"), data, rounds=3)
    fed_avg = fs.fed_avg(task, client_lr=0.1, local_epochs=2, batch_size=4, shuffle="never")
    shared, _ = toys.play(fed_avg, data, rounds=3)
    toys.assert_close(state.params, shared.params, rtol=1e-5)
    start = toys.init(fed_avg).params
    for k in (1, 2, 3):  # one batch, no data, several batches
        alone, _ = jax.jit(local(task, epochs=6).run)(start, client(data, k), jax.random.key(0), ETA)
        toys.assert_close(jax.tree.map(lambda v: v[k], state.clients), alone, rtol=1e-5)  # noqa: B023


def test_a_pull_draws_a_clients_model_to_the_shared_one(task, data):
    algorithm, batch = personal(task, shuffle="never", local_epochs=1, pull=2.0), jnp.arange(4)
    before, _ = toys.play(algorithm, data)
    after, _ = toys.play(algorithm, data, state=before)
    w, me = before.params, client(data, 3)
    v, v_2 = (jax.tree.map(lambda leaf: leaf[3], state.clients) for state in (before, after))
    for b in range(5):  # 20 examples
        of_batch = (me.take(4 * b + batch), jnp.ones(4, bool), jax.random.key(0))
        g, _ = fs.engine.mean_gradient(task, v, *of_batch)
        v = jax.tree.map(lambda v, g, w: v - ETA * (g + 2.0 * (v - w)), v, g, w)
    toys.assert_close(v_2, v, rtol=1e-5)


@pytest.mark.parametrize(("lanes", "devices"), [pytest.param(3, 1, marks=pytest.mark.slow), (4, 2)])
def test_lanes_and_devices_change_rounding_alone(task, data, lanes, devices):
    algorithm = personal(task, pull=0.5)
    expected, info = toys.play(algorithm, data, rounds=2)
    state, other = toys.play(algorithm, data, rounds=2, where=toys.layout(lanes, devices))
    toys.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert info["examples"] == other["examples"] == 2 * sum(toys.SIZES)
