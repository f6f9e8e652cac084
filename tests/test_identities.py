"""Equalities between algorithms, lanes, devices and cohorts: what must hold before any accuracy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.core.permutation import permutation

pytestmark = pytest.mark.usefixtures("quick_compilation")


def mean_loss(task, params, x, y):
    total, _ = task.loss(params, {"x": jnp.asarray(x), "y": jnp.asarray(y)}, jax.random.key(0))
    return total.mean()


def descend(task, params, x, y, rate):
    gradient = jax.grad(functools.partial(mean_loss, task))(params, x, y)
    return jax.tree.map(lambda w, g: w - jnp.float32(rate) * g, params, gradient)


def client_rows(data, k):
    return slice(int(data.offsets[k]), int(data.offsets[k + 1]))


def test_fed_sgd_with_everybody_is_a_gradient_step_on_the_pooled_loss(task, data):
    algorithm = fs.fed_sgd(task, client_lr=0.3)
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data)
    x, y = data.examples["x"], data.examples["y"]
    toys.assert_close(state.params, descend(task, start.params, x, y, 0.3))
    np.testing.assert_allclose(info["train_loss"], mean_loss(task, start.params, x, y), rtol=1e-5)


@pytest.mark.parametrize("cohort", [[3], [0, 3, 5], range(10)])
def test_fed_sgd_is_fed_avg_with_one_epoch_of_one_batch(task, data, cohort):
    state_sgd, _ = toys.play(fs.fed_sgd(task, client_lr=0.3), data, cohort)
    algorithm = fs.fed_avg(task, client_lr=0.3, local_epochs=1, batch_size=math.inf)
    state_avg, _ = toys.play(algorithm, data, cohort)
    toys.assert_close(state_sgd.params, state_avg.params)


@pytest.mark.parametrize(
    "shuffle", ["each_epoch", *(pytest.param(s, marks=pytest.mark.slow) for s in ("never", "once"))]
)
def test_fed_avg_on_one_client_is_sgd(task, data, shuffle):
    k, epochs, batch = 5, 3, 4  # 13 examples: the last batch has one
    algorithm = fs.fed_avg(task, client_lr=0.2, local_epochs=epochs, batch_size=batch, shuffle=shuffle)
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data, [k])

    rows = client_rows(data, k)
    x, y = data.examples["x"][rows], data.examples["y"][rows]
    client_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), k)
    order_key = jax.random.fold_in(client_key, 0)
    expected = start.params
    for e in range(epochs):
        order = np.arange(13)
        if shuffle != "never":
            key = order_key if shuffle == "once" else jax.random.fold_in(order_key, e)
            order = np.asarray(permutation(key, jnp.int32(13))(jnp.asarray(order, jnp.int32)))
        for i in range(0, 13, batch):
            chosen = order[i : i + batch]
            expected = descend(task, expected, x[chosen], y[chosen], 0.2)
    toys.assert_close(state.params, expected)
    assert int(info["examples"]) == epochs * 13
    assert int(info["slots"]) == epochs * 16


def test_sequential_sgd_is_fed_avg_on_pooled_data_without_shuffling_noise(task, data):
    # One step a round with a batch of everything leaves no order to choose.
    n = data.examples["y"].shape[0]
    algorithm = fs.sgd(task, batch_size=n, steps_per_round=3, client_lr=0.2)
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data, [0])
    expected = start.params
    for _ in range(3):
        expected = descend(task, expected, data.examples["x"], data.examples["y"], 0.2)
    toys.assert_close(state.params, expected)
    assert int(info["examples"]) == 3 * n


def test_sequential_sgd_visits_every_row_once_an_epoch(task, data):
    n = data.examples["y"].shape[0]
    algorithm = fs.sgd(task, batch_size=10, steps_per_round=math.ceil(n / 10), client_lr=0.0)
    start = toys.init(algorithm)
    _, info = toys.play(algorithm, data, [0])
    assert int(info["examples"]) == n
    everything = mean_loss(task, start.params, data.examples["x"], data.examples["y"])
    np.testing.assert_allclose(info["train_loss"], everything, rtol=1e-5)


@pytest.mark.parametrize("k", [0, 3, 1])
def test_an_infinite_batch_is_a_batch_of_all_examples(task, data, k):
    n_k = int(data.sizes[k])
    settings = {"client_lr": 0.3, "local_epochs": 2}
    infinite, _ = toys.play(fs.fed_avg(task, batch_size=math.inf, **settings), data, [k])
    all_at_once, _ = toys.play(fs.fed_avg(task, batch_size=n_k, **settings), data, [k])
    toys.assert_close(infinite.params, all_at_once.params)


def test_an_infinite_batch_of_several_micro_batches_is_one_gradient(task):
    data = toys.federation((123, 50, 1))
    algorithm = fs.fed_avg(task, client_lr=0.3, local_epochs=1, batch_size=math.inf)
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data, [0])
    rows = client_rows(data, 0)
    expected = descend(task, start.params, data.examples["x"][rows], data.examples["y"][rows], 0.3)
    toys.assert_close(state.params, expected)
    assert int(info["examples"]) == 123


LAYOUTS = [(1, 2), (64, 2)]
ALGORITHMS = {
    "fed_avg": lambda task: fs.fed_avg(task, client_lr=0.2, local_epochs=2, batch_size=4),
    "fed_avg, B=inf": lambda task: fs.fed_avg(task, client_lr=0.2, local_epochs=2, batch_size=math.inf),
    "fed_avg, rmsprop": lambda task: fs.fed_avg(
        task, optax.rmsprop, client_lr=0.01, local_epochs=2, batch_size=4, shuffle="never"
    ),
    "fed_sgd": lambda task: fs.fed_sgd(task, client_lr=0.2),
}


@pytest.mark.parametrize(
    "name",
    [
        "fed_avg",
        "fed_sgd",
        pytest.param("fed_avg, B=inf", marks=pytest.mark.slow),
        pytest.param("fed_avg, rmsprop", marks=pytest.mark.slow),
    ],
)
def test_lanes_and_devices_change_nothing(task, data, name):
    algorithm = ALGORITHMS[name](task)
    expected, info = toys.play(algorithm, data, rounds=2)
    for lanes, devices in LAYOUTS:
        state, other = toys.play(algorithm, data, rounds=2, where=toys.layout(lanes, devices))
        toys.assert_close(state.params, expected.params, rtol=2e-4, atol=2e-5)
        assert int(other["examples"]) == int(info["examples"])
        np.testing.assert_allclose(other["train_loss"], info["train_loss"], rtol=1e-4)


@pytest.mark.slow
def test_the_order_of_the_cohort_changes_nothing(task, data):
    algorithm = ALGORITHMS["fed_avg"](task)
    forward, _ = toys.play(algorithm, data, [0, 3, 5, 8, 9], where=toys.layout(2, 2))
    backward, _ = toys.play(algorithm, data, [9, 5, 0, 8, 3], where=toys.layout(2, 2))
    toys.assert_close(forward.params, backward.params)


@pytest.mark.parametrize(
    ("lanes", "devices"),
    [(1, 1), pytest.param(3, 1, marks=pytest.mark.slow), (3, 2)],
)
def test_rows_of_others_never_leak(task, data, lanes, devices):
    """Huge and non-finite rows outside the cohort leave no trace, to the bit."""
    algorithm = ALGORITHMS["fed_avg, rmsprop"](task)
    cohort = [1, 3, 4, 7]
    where = toys.layout(lanes, devices)
    clean, _ = toys.play(algorithm, data, cohort, where=where)
    for poison in (1e6, np.nan, np.inf):
        x = np.full_like(data.examples["x"], poison)
        for k in cohort:
            x[client_rows(data, k)] = data.examples["x"][client_rows(data, k)]
        tail = np.full((5, toys.FEATURES), poison, np.float32)
        poisoned = fs.data.FederatedData(
            examples={
                "x": np.concatenate([x, tail]),
                "y": np.concatenate([data.examples["y"], np.zeros(5, np.int32)]),
            },
            offsets=data.offsets,
            client_ids=data.client_ids,
            num_classes=data.num_classes,
            name=data.name,
        )
        state, _ = toys.play(algorithm, poisoned, cohort, where=where)
        toys.assert_same(state.params, clean.params)


def test_a_clients_own_randomness_does_not_depend_on_its_place(task, data):
    """A cohort of two is the weighted mean of what each gives alone."""
    algorithm = ALGORITHMS["fed_avg"](task)
    alone = {k: toys.play(algorithm, data, [k])[0].params for k in (3, 5)}
    together, _ = toys.play(algorithm, data, [5, 3])
    mean = jax.tree.map(lambda a, b: (20 * a + 13 * b) / 33, alone[3], alone[5])
    toys.assert_close(together.params, mean)


def test_uniform_weights_ignore_sizes(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.2, local_epochs=1, batch_size=4, weighting="uniform")
    alone = {k: toys.play(algorithm, data, [k])[0].params for k in (3, 1)}
    together, _ = toys.play(algorithm, data, [1, 3, 2])  # client 2 is empty: no vote
    toys.assert_close(together.params, jax.tree.map(lambda a, b: (a + b) / 2, alone[3], alone[1]))


def test_weights_sum_to_one_over_the_cohort_not_over_all_clients(task, data):
    """The formula as first printed, n_k over ALL clients' examples, would shrink the model."""
    algorithm = fs.fed_avg(task, client_lr=0.0, local_epochs=1, batch_size=4)
    start = toys.init(algorithm)
    state, _ = toys.play(algorithm, data, [3, 5])
    toys.assert_close(state.params, start.params)
    share = 33 / sum(toys.SIZES)
    shrunk = jax.tree.map(lambda w: w * jnp.float32(share), start.params)
    assert toys.largest_difference(state.params, shrunk) > 0.1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_empty_client_alone_changes_nothing(task, data, name):
    algorithm = ALGORITHMS[name](task)
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data, [2])
    toys.assert_same(state.params, start.params)
    assert int(info["examples"]) == 0
    assert np.isfinite(info["train_loss"])


def test_an_empty_client_among_others_weighs_nothing(task, data):
    algorithm = ALGORITHMS["fed_avg"](task)
    without, _ = toys.play(algorithm, data, [0, 3])
    with_empty, _ = toys.play(algorithm, data, [0, 2, 3])
    toys.assert_close(with_empty.params, without.params)


def test_a_lane_of_a_vmapped_run_is_the_single_run(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    rates = jnp.array([0.05, 0.2, 0.7])
    cohort = fs.Cohort(jnp.arange(10, dtype=jnp.int32))

    def run(rate):
        hparams = {k: jnp.float32(v) for k, v in algorithm.hparams.items()} | {"client_lr": rate}
        state = algorithm.init(jax.random.key(0), hparams, 10)
        return algorithm.round(jax.random.key(1), state, (), data, cohort)[0].params

    together = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        alone = jax.jit(run)(rate)
        toys.assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-4)


def test_the_rate_decays_per_round(task, data):
    """With a rate that vanishes after the first round, later rounds change nothing."""
    algorithm = fs.fed_avg(task, client_lr=0.2, lr_decay=0.0, local_epochs=1, batch_size=4)
    once, _ = toys.play(algorithm, data, rounds=1)
    thrice, _ = toys.play(algorithm, data, rounds=3)
    assert toys.largest_difference(once.params, toys.init(algorithm).params) > 1e-3
    toys.assert_close(once.params, thrice.params)


def test_decay_multiplies_the_rate(task, data):
    decayed = fs.fed_sgd(task, client_lr=0.4, lr_decay=0.5)
    plain = fs.fed_sgd(task, client_lr=0.2)
    after_one, _ = toys.play(decayed, data, rounds=1)
    after_two, _ = toys.play(decayed, data, state=after_one)
    by_hand, _ = toys.play(plain, data, state=toys.init(plain)._replace(params=after_one.params))
    toys.assert_close(after_two.params, by_hand.params)


def test_an_optimizer_already_built_has_a_rate_of_its_own(task, data):
    settings = {"local_epochs": 2, "batch_size": 4}
    factory, _ = toys.play(fs.fed_avg(task, optax.sgd, client_lr=0.2, **settings), data)
    built, _ = toys.play(fs.fed_avg(task, optax.sgd(0.2), **settings), data)
    toys.assert_close(factory.params, built.params)


def test_the_server_optimizer_takes_the_mean_update_as_its_gradient(task, data):
    settings = {"client_lr": 0.2, "local_epochs": 1, "batch_size": 4}
    algorithm = fs.fed_avg(task, optax.sgd, optax.adam, server_lr=0.05, **settings)
    start = toys.init(algorithm)
    replaced, _ = toys.play(fs.fed_avg(task, **settings), data)
    gradient = jax.tree.map(jnp.subtract, start.params, replaced.params)
    with jax.numpy_dtype_promotion("standard"):  # Adam itself raises a float to an integer power
        state, _ = toys.play(algorithm, data)
        adam = optax.adam(0.05)
        updates, _ = adam.update(gradient, adam.init(start.params), start.params)
    # Adam divides by the gradient's size, so tiny gradients keep few digits.
    toys.assert_close(state.params, optax.apply_updates(start.params, updates), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_server_momentum_persists_over_rounds(task, data):
    momentum = functools.partial(optax.sgd, momentum=0.9)
    settings = {"client_lr": 0.0, "server_lr": 1.0, "local_epochs": 1, "batch_size": 4}
    algorithm = fs.fed_avg(task, optax.sgd, momentum, **settings)
    moving = fs.fed_avg(task, optax.sgd, momentum, **(settings | {"client_lr": 0.2}))
    first, _ = toys.play(moving, data)
    still = first._replace(hparams=first.hparams | {"client_lr": jnp.float32(0)})
    second, _ = toys.play(algorithm, data, state=still)
    step = jax.tree.map(jnp.subtract, first.params, toys.init(moving).params)
    expected = jax.tree.map(lambda w, s: w + jnp.float32(0.9) * s, first.params, step)
    toys.assert_close(second.params, expected, rtol=1e-4)
