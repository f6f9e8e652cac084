"""IFCA: one cluster is FedAvg, clusters are found, and each client is judged by its own model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = {"client_lr": 0.1, "local_epochs": 2, "batch_size": 4}
THETA = np.random.default_rng(0).integers(0, 2, (2, 12)).astype(np.float32)  # as in the paper
NOISE = 0.1


@pytest.fixture
def linear():
    """Linear regression; the paper's synthetic data has nothing else."""

    def error(w, batch):
        return (batch["x"] @ w - batch["y"]) ** 2, jnp.ones(batch["y"].shape)

    return fs.Task(
        lambda key: jax.random.normal(key, (12,)),
        lambda w, batch, key: error(w, batch),
        lambda w, batch: {"loss": error(w, batch)},
    )


def mixture(num_clients, size, seed):
    """Clients of two clusters in turns: x ~ N(0, I), y = theta_j x + noise."""
    rng, n = np.random.default_rng(seed), num_clients * size
    x = rng.normal(size=(n, 12)).astype(np.float32)
    j = np.repeat(np.arange(num_clients) % 2, size)
    y = (x * THETA[j]).sum(1) + NOISE * rng.normal(size=n)
    offsets = np.arange(0, n + 1, size, dtype=np.int32)
    return fs.data.FederatedData({"x": x, "y": y.astype(np.float32)}, offsets)


@pytest.mark.parametrize("lanes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_cluster_is_fed_avg(task, data, lanes):
    plain = fs.fed_avg(task, weighting="uniform", **SETTINGS)
    state, info = toys.play(plain, data, where=toys.layout(lanes))
    one, same = toys.play(fs.ifca(task, num_clusters=1, **SETTINGS), data, where=toys.layout(lanes))
    toys.assert_same(jax.tree.map(lambda w: w[0], one.params), state.params)
    toys.assert_same(info, same)


def test_a_round_is_one_of_fed_avg_in_each_cluster(task, data):
    """Clients choose by their losses before training, which NumPy computes here."""
    algorithm = fs.ifca(task, num_clusters=2, **SETTINGS)
    start = toys.init(algorithm)
    state, _ = toys.play(algorithm, data, state=start)
    models = [jax.tree.map(lambda w, j=j: w[j], start.params) for j in range(2)]
    losses = np.zeros((2, data.num_clients))
    for j, w in enumerate(models):
        total, _ = task.loss(w, jax.tree.map(jnp.asarray, data.examples), jax.random.key(0))
        owner = np.repeat(np.arange(data.num_clients), data.sizes)
        losses[j] = np.bincount(owner, np.asarray(total), data.num_clients)
    chosen = np.where(data.sizes > 0, np.argmin(losses, axis=0), -1)
    assert len(set(chosen)) > 2  # the empty client, and both clusters

    plain = fs.fed_avg(task, weighting="uniform", **SETTINGS)
    for j, w in enumerate(models):
        expected = w
        if (chosen == j).any():
            begin = toys.init(plain)._replace(params=w)
            expected = toys.play(plain, data, np.flatnonzero(chosen == j), state=begin)[0].params
        toys.assert_close(jax.tree.map(lambda w, j=j: w[j], state.params), expected)


def test_clusters_of_a_linear_mixture_are_found_from_a_warm_start(linear):
    """The paper's success: every model within 0.6 standard deviations of its cluster's."""
    train, test = mixture(20, 50, seed=1), mixture(6, 50, seed=2)
    start = THETA + np.random.default_rng(3).normal(size=THETA.shape).astype(np.float32) / 2
    result = fs.simulate(
        fs.ifca(linear, num_clusters=2, client_lr=0.05, local_epochs=1, batch_size=10),
        train,
        key=jax.random.key(0),
        num_rounds=30,
        eval_every=30,
        client_fraction=0.5,
        evaluate=fs.simulation.cluster_evaluator(linear, test),
        initial_params=jnp.asarray(start),
    )
    assert np.linalg.norm(start - THETA, axis=1).min() > 1
    assert np.linalg.norm(result.params - THETA, axis=1).max() < 0.6 * NOISE
    assert result.rows[-1]["test_loss"] == pytest.approx(NOISE**2, rel=0.2)
    one = fs.fed_avg(linear, client_lr=0.05, local_epochs=1, batch_size=10)
    shared = fs.simulate(one, train, key=jax.random.key(0), num_rounds=30, client_fraction=0.5)
    assert fs.evaluator(linear, test)(shared.params)["test_loss"] > 10 * NOISE**2


def test_a_cluster_that_nobody_chooses_keeps_its_model(linear):
    train = mixture(4, 20, seed=1)
    start = jnp.asarray(np.stack([THETA[0], 100 + THETA[1]]))
    algorithm = fs.ifca(linear, num_clusters=2, client_lr=0.05, local_epochs=1, batch_size=10)
    state = toys.init(algorithm, num_clients=4)._replace(params=start)
    after, _ = toys.play(algorithm, train, state=state)
    toys.assert_same(after.params[1], start[1])
    assert toys.largest_difference(after.params[0], start[0]) > 0.01


def test_each_client_is_judged_by_the_model_that_fits_it(linear):
    test = mixture(5, 30, seed=2)
    models = np.stack([THETA[1], THETA[0], 0 * THETA[0]])
    found = fs.simulation.cluster_evaluator(linear, test, prefix="held_out")(jnp.asarray(models))
    errors = (test.examples["x"] @ models.T - test.examples["y"][:, None]) ** 2
    assert found == {"held_out_loss": pytest.approx(errors.reshape(5, 30, 3).mean(1).min(1).mean())}
    with pytest.raises(ValueError, match=r"shapes \(3, 12\); wanted one model.*cluster_evaluator"):
        fs.evaluator(linear, test)(jnp.asarray(models))


def test_a_client_receives_all_models_and_sends_one_with_its_choice(task):
    algorithm = fs.ifca(task, num_clusters=3, **SETTINGS)
    one = fs.fed_avg(task, **SETTINGS).message_bytes(toys.init(fs.fed_avg(task, **SETTINGS)))
    found = algorithm.message_bytes(toys.init(algorithm))
    assert found == {"down_model": 3 * one["down_model"], "up_update": one["up_update"] + 4}


def test_there_is_at_least_one_cluster(task):
    with pytest.raises(ValueError, match="num_clusters is 0"):
        fs.ifca(task, num_clusters=0, **SETTINGS)
