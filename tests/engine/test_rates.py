"""Learning rates: given once, to an optimizer that keeps what it is given."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest
import toys

import fedjax_sim as fs

FACTORIES = {
    "fed_avg": lambda task, *optimizer, **settings: fs.fed_avg(
        task, *optimizer, local_epochs=1, batch_size=4, **settings
    ),
    "fed_sgd": fs.fed_sgd,
    "sgd": functools.partial(fs.sgd, batch_size=4),
    "dynamic_averaging": lambda task, *optimizer, **settings: fs.dynamic_averaging(
        task, fs.protocols.none(period=2), *optimizer, num_learners=10, batch_size=4, **settings
    ),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_rate_that_is_not_given_is_asked_for(task, name):
    for optimizer in ((), (optax.adam,), (functools.partial(optax.sgd, momentum=0.9),)):
        with pytest.raises(ValueError, match="client_lr is not given; wanted the learning rate"):
            FACTORIES[name](task, *optimizer)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_rate_given_twice_is_refused(task, name):
    with pytest.raises(ValueError, match=r"client_lr is 0\.1, but the optimizer is already built"):
        FACTORIES[name](task, optax.adam(1e-4), client_lr=0.1)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_optimizer_already_built_has_no_rate_to_sweep(task, data, name):
    algorithm = FACTORIES[name](task, optax.sgd(0.1))
    assert "client_lr" not in algorithm.hparams
    with pytest.raises(ValueError, match="no hyper-parameter client_lr"):
        fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=1, hparams={"client_lr": 0.2})


def test_the_server_s_rate_is_one_for_sgd_and_asked_for_otherwise(task):
    settings = {"client_lr": 0.1, "local_epochs": 1, "batch_size": 4}
    assert fs.fed_avg(task, **settings).hparams["server_lr"] == 1.0
    with pytest.raises(ValueError, match="server_lr is not given"):
        fs.fed_avg(task, optax.sgd, optax.adam, **settings)
    with pytest.raises(ValueError, match=r"server_lr is 0\.5, but the optimizer is already built"):
        fs.fed_avg(task, optax.sgd, optax.adam(1e-3), server_lr=0.5, **settings)
    assert "server_lr" not in fs.fed_avg(task, optax.sgd, optax.adam(1e-3), **settings).hparams


SCHEDULE = optax.piecewise_constant_schedule(0.1, {3: 0.5})


@pytest.mark.parametrize("batch_size", [4, math.inf])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(SCHEDULE),
        optax.chain(optax.clip(1.0), optax.masked(optax.sgd(SCHEDULE), True)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE),
        pytest.param(
            optax.chain(optax.add_decayed_weights(SCHEDULE), optax.sgd(0.1)),
            marks=pytest.mark.skipif(
                not jax.tree.leaves(optax.add_decayed_weights(SCHEDULE).init(jnp.zeros(1))),
                reason="this version of optax takes no schedule of weight decay",
            ),
        ),
    ],
    ids=["plain", "inside others", "injected", "weight decay"],
)
def test_a_schedule_that_would_begin_again_in_each_round_is_refused(task, data, optimizer, batch_size):
    algorithm = fs.fed_avg(task, optimizer, local_epochs=1, batch_size=batch_size)
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(ValueError, match="has a schedule, which counts local steps and restarts"),
    ):
        fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=1)


@pytest.mark.slow
def test_injected_constants_are_no_schedule(task, data):
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    with jax.numpy_dtype_promotion("standard"):
        given, _ = toys.play(fs.fed_avg(task, injected, local_epochs=2, batch_size=4), data)
        plain, _ = toys.play(fs.fed_avg(task, optax.sgd(0.1), local_epochs=2, batch_size=4), data)
    toys.assert_close(given.params, plain.params)


def test_a_schedule_of_an_optimizer_that_persists_is_followed(task, data):
    """Steps of the server are rounds."""

    def schedule(step):
        return jnp.where(step < 1, jnp.float32(0.5), jnp.float32(0.0))

    server = fs.fed_avg(
        task, optax.sgd, optax.sgd(schedule), client_lr=0.1, local_epochs=1, batch_size=4
    )
    after_one, _ = toys.play(server, data, rounds=1)
    after_two, _ = toys.play(server, data, rounds=2)
    assert toys.largest_difference(after_one.params, toys.init(server).params) > 0
    toys.assert_same(after_one.params, after_two.params)


def halved(t):
    return 0.1 * 0.5 ** t.astype(jnp.float32)


MAKERS = {
    "fed_avg": lambda *a, **k: fs.fed_avg(*a, local_epochs=1, batch_size=4, **k),
    "scaffold": lambda *a, **k: fs.scaffold(*a, local_epochs=1, batch_size=4, **k),
    "fed_sgd": fs.fed_sgd,
    "sgd": lambda *a, **k: fs.sgd(*a, batch_size=4, **k),
}


@pytest.mark.parametrize(
    "name", ["fed_avg", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MAKERS)[1:])]
)
def test_a_schedule_of_the_round_is_followed_and_a_hyper_parameter_multiplies_it(task, data, name):
    decayed = MAKERS[name](task, client_lr=0.1, lr_decay=0.5)
    scheduled = MAKERS[name](task, client_lr=halved)
    assert scheduled.hparams == decayed.hparams | {"client_lr": 1.0, "lr_decay": 1.0}
    wanted, _ = toys.play(decayed, data, rounds=3)
    found, _ = toys.play(scheduled, data, rounds=3)
    toys.assert_close(found.params, wanted.params)
    begin = toys.init(scheduled, num_clients=data.num_clients, client_lr=2.0)
    twice, _ = toys.play(scheduled, data, state=begin)
    begin = toys.init(decayed, num_clients=data.num_clients, client_lr=0.2)
    toys.assert_close(twice.params, toys.play(decayed, data, state=begin)[0].params)


def test_a_schedule_of_the_server_is_followed(task, data):
    def once(t):
        return jnp.where(t < 1, jnp.float32(1.0), jnp.float32(0.0))

    settings = {"client_lr": 0.1, "local_epochs": 1, "batch_size": 4}
    algorithm = fs.fed_avg(task, server_lr=once, **settings)
    after_one, _ = toys.play(algorithm, data, rounds=1)
    toys.assert_same(after_one.params, toys.play(fs.fed_avg(task, **settings), data)[0].params)
    toys.assert_same(after_one.params, toys.play(algorithm, data, rounds=2)[0].params)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda t: jnp.float32("nan"), "client_lr in round 0 is nan; wanted a finite number"),
        (lambda t: jnp.float32(-1), "client_lr in round 0 is -1"),
        (lambda t: jnp.ones(2), r"client_lr is a schedule whose value in round 0 has shape \(2,\)"),
    ],
)
def test_a_schedule_begins_with_a_rate(task, schedule, message):
    with pytest.raises(ValueError, match=message):
        fs.fed_sgd(task, client_lr=schedule)
