"""FedProx: FedAvg without its pull, stragglers that do part of their epochs, and the pull by hand."""

import jax
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs


@pytest.mark.parametrize("batch_size", [4, pytest.param(float("inf"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("lanes", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("quick_compilation")
def test_without_a_pull_it_is_fed_avg_to_the_bit(task, data, lanes, batch_size):
    settings = {"client_lr": 0.1, "local_epochs": 2, "batch_size": batch_size}
    where = toys.layout(lanes)
    prox, _ = toys.play(fs.fed_prox(task, mu=0.0, **settings), data, rounds=2, where=where)
    plain, _ = toys.play(fs.fed_avg(task, **settings), data, rounds=2, where=where)
    toys.assert_same(prox.params, plain.params)


@pytest.mark.usefixtures("quick_compilation")
def test_a_stronger_pull_moves_the_model_less(task, data):
    def moved(mu):
        algorithm = fs.fed_prox(task, client_lr=0.1, mu=mu, local_epochs=5, batch_size=4)
        after, _ = toys.play(algorithm, data)
        return float(
            optax.tree.norm(jax.tree.map(np.subtract, after.params, toys.init(algorithm).params))
        )

    assert moved(0.0) > 1.2 * moved(1.0) > 1.2 * 1.2 * moved(5.0)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_stragglers_do_part_of_their_epochs_and_may_be_dropped(task, data):
    settings = {"client_lr": 0.1, "mu": 0.0, "local_epochs": 8, "batch_size": 4, "stragglers": 1.0}
    where, total = toys.layout(3), int(np.asarray(data.sizes).sum())
    kept, info = toys.play(fs.fed_prox(task, **settings), data, where=where)
    assert total <= int(info["examples"]) <= 7 * total
    alone, same = toys.play(fs.fed_prox(task, **settings), data)
    assert int(same["examples"]) == int(info["examples"])
    toys.assert_close(kept.params, alone.params, rtol=1e-4, atol=1e-6)
    algorithm = fs.fed_prox(task, drop_stragglers=True, **settings)
    dropped, _ = toys.play(algorithm, data, where=where)
    toys.assert_same(dropped.params, toys.init(algorithm).params)  # everybody is one


def test_shares_out_of_range_are_refused(task):
    with pytest.raises(ValueError, match=r"stragglers is 1.5; wanted a number in \[0, 1\]"):
        fs.fed_prox(task, client_lr=0.1, mu=0.0, local_epochs=1, batch_size=4, stragglers=1.5)
    with pytest.raises(ValueError, match=r"stragglers is 0\.5 with local_epochs=1"):
        fs.fed_prox(task, client_lr=0.1, mu=0.0, local_epochs=1, batch_size=4, stragglers=0.5)
    with pytest.raises(ValueError, match="mu is -1"):
        fs.fed_prox(task, client_lr=0.1, mu=-1, local_epochs=1, batch_size=4)


@pytest.mark.parametrize("batch_size", [4, pytest.param(float("inf"), marks=pytest.mark.slow)])
@pytest.mark.usefixtures("quick_compilation")
def test_a_gradient_of_one_s_own_pulls_as_the_optimizer_does(task, data, batch_size):
    """The proximal term added to gradients of batches, or of pieces of all data, instead."""

    def gradient(params, rate, batch, real, key):
        _, mu, w = rate
        found, losses = fs.engine.mean_gradient(task, params, batch, real, key)
        return jax.tree.map(lambda g, a, b: g + mu * (a - b), found, params, w), losses

    work = fs.local_training(
        task,
        lambda rate: optax.sgd(rate[0]),
        local_epochs=3,
        batch_size=batch_size,
        gradient=gradient,
    )
    algorithm = fs.fed_prox(task, client_lr=0.1, mu=0.7, local_epochs=3, batch_size=batch_size)
    expected, _ = toys.play(algorithm, data, [3])
    w = toys.init(algorithm).params
    start, size = int(data.offsets[3]), int(data.sizes[3])
    examples = jax.tree.map(jax.numpy.asarray, dict(data.examples))
    client = fs.Client(examples, np.int32(start), np.int32(size), np.int32(3))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), 0), 3)
    rate = (np.float32(0.1), np.float32(0.7), w)
    trained, _ = jax.jit(lambda w, rate: work.run(w, client, key, rate))(w, rate)
    toys.assert_close(trained, expected.params, rtol=1e-4, atol=1e-6)
