"""Whole rounds of learners: what dynamic averaging equals, and what holds after every check."""

import averaging_toys as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.engine.streams import Streams

pytestmark = pytest.mark.usefixtures("quick_compilation")

M, N, B = toy.M, toy.N, toy.B
P = fs.protocols
MODEL_BYTES = 4 * (toys.FEATURES * 8 + 8 + 8 * toys.CLASSES + toys.CLASSES)


@pytest.mark.parametrize(("delta", "weighting"), [(0.8, "uniform"), (1.2, "examples")])
def test_after_every_check_the_mean_is_unchanged_and_the_divergence_at_most_delta(delta, weighting):
    sizes = [1, 2] * (M // 2) if weighting == "examples" else B
    settings = {"weighting": weighting, "batch_size": sizes}
    algorithm = toy.algorithm(P.dynamic(delta=delta, period=3), **settings)
    alone = toy.algorithm(P.none(period=3), **settings)
    states, infos = toy.states(algorithm, 12)
    before, members = toys.init(algorithm), []
    for r, after in enumerate(states):
        # The same steps without the meeting at their end.
        apart = toy.states(alone, 1, state=before, first=r)[0][0]
        weights = np.asarray(apart.seen) if weighting == "examples" else np.ones(M)
        means = [np.average(toy.flat(s.learners), 0, weights) for s in (apart, after)]
        np.testing.assert_allclose(*means, rtol=1e-4, atol=1e-5)
        assert toy.distances(after.learners, after.reference).max() <= delta * (1 + 1e-4)
        assert toy.distances(after.learners, after.params).mean() <= delta * (1 + 1e-4)
        met = np.asarray(after.seen) == 0
        members.append(int(met.sum()))
        assert members[-1] == infos[r]["messages_down_model"]
        if members[-1] < M:
            toys.assert_same(after.reference, before.reference)
        else:
            np.testing.assert_allclose(toy.flat_one(after.reference), toy.flat(after.learners)[0])
        before = after
    # All that can happen did.
    assert {0, M} <= set(members)
    assert any(0 < size < M for size in members)


@pytest.fixture
def promotion():
    """optax.adam mixes dtypes, which the tests of our own code forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("optimizer", [optax.sgd, pytest.param(optax.adam, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("promotion")
def test_delta_zero_is_periodic_averaging(optimizer):
    rate = {optax.sgd: 0.3, optax.adam: 0.01}[optimizer]
    found = []
    for protocol in (P.dynamic(delta=0.0, period=2), P.periodic(period=2)):
        algorithm = toy.algorithm(protocol, optimizer=optimizer, client_lr=rate)
        found.append(toy.states(algorithm, 5)[0][-1])
    dynamic, periodic = found
    toys.assert_same(dynamic.learners, periodic.learners)
    toys.assert_same(dynamic.optimizers, periodic.optimizers)


def test_an_infinite_delta_never_sends_anything():
    algorithm = toy.algorithm(P.dynamic(delta=float("inf"), period=2))
    silent, infos = toy.states(algorithm, 5)
    alone, _ = toy.states(toy.algorithm(P.none(period=2)), 5)
    toys.assert_same(silent[-1].learners, alone[-1].learners)
    assert all(count == 0 for info in infos for name, count in info.items() if "messages" in name)
    assert sum("messages" in name for name in infos[0]) == 4


@pytest.mark.parametrize(
    "sizes", [pytest.param((2,) * M, marks=pytest.mark.slow), (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)]
)
def test_continuous_averaging_is_serial_descent_with_all_batches(sizes):
    """`w <- w - eta / m * sum of gradients`: the paper's update sums, ours takes means at eta * B."""
    equal, steps, eta = len(set(sizes)) == 1, 4, 0.05
    # Unequal batches, weighted by their sizes: the mean over all their examples.
    rate = eta * sizes[0] if equal else eta
    algorithm = toy.algorithm(
        P.continuous(),
        batch_size=sizes,
        client_lr=rate,
        weighting="uniform" if equal else "examples",
    )
    states, infos = toy.states(algorithm, steps)
    data, task = toy.data(), toys.task()
    w, total = toys.init(algorithm).reference, sum(sizes)
    step = jnp.float32(eta / M if equal else eta / total)
    for t in range(steps):
        rows = np.concatenate([k * N + (t * size + np.arange(size)) % N for k, size in enumerate(sizes)])
        batch = {name: jnp.asarray(column[rows]) for name, column in data.examples.items()}

        def summed(w, batch=batch):
            return task.loss(w, batch, jax.random.key(0))[0].sum()

        # The loss is taken before the model learns from the batch.
        np.testing.assert_allclose(infos[t]["cumulative_loss"], summed(w), rtol=1e-5)
        assert infos[t]["examples"] == total
        w = jax.tree.map(lambda w, g: w - step * g, w, jax.grad(summed)(w))
    assert_all_close(states[-1].learners, w)


def assert_all_close(learners, w):
    for row in toy.flat(learners):
        np.testing.assert_allclose(row, toy.flat_one(w), rtol=1e-4, atol=1e-5)


WHOLE = {
    "dynamic": (P.dynamic(delta=0.1, period=2), {"optimizer": optax.adam, "client_lr": 0.02}),
    "fed_avg": (
        P.fed_avg(period=2, fraction=0.4),
        {
            "batch_size": (1, 2, 3, 4, 5) * 2,
            "weighting": "examples",
            "stream": "shared",
            "drift": fs.data.label_drift((5,), num_classes=toys.CLASSES),
        },
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("dynamic", "fed_avg")]
)
@pytest.mark.usefixtures("promotion")
def test_lanes_and_devices_change_nothing(name):
    protocol, settings = WHOLE[name]
    algorithm = toy.algorithm(protocol, **settings)
    one, infos = toy.states(algorithm, 6)
    for lanes, devices in ((3, 1), (1, 2), (2, 2)):
        other, same = toy.states(algorithm, 6, where=toys.layout(lanes, devices))
        expected, found = (jax.device_get(s[-1]._replace(key=0)) for s in (one, other))
        toys.assert_close(expected, found, rtol=1e-4, atol=1e-5)
        for a, b in zip(infos, same, strict=True):
            counts = {name for name in a if a[name].dtype == np.int32}
            assert {name: a[name] for name in counts} == {name: b[name] for name in counts}
    assert np.sum([info["messages_down_model"] for info in infos]) > 0


@pytest.mark.slow
def test_a_protocol_counts_its_messages_in_every_row():
    rounds, data = 3, toy.data()

    def last_row(protocol, **settings):
        algorithm = toy.algorithm(protocol, **settings)
        layout = toys.layout()
        key = jax.random.key(0)
        return fs.simulate(algorithm, data, key=key, num_rounds=rounds, layout=layout).rows[-1]

    row = last_row(P.periodic(period=4))
    assert row["bytes_up"] == row["bytes_down"] == rounds * M * MODEL_BYTES
    assert row["trips_up_model"] == row["trips_down_model"] == rounds
    row = last_row(P.fed_avg(period=4, fraction=0.3))
    assert row["bytes_up"] == rounds * 3 * MODEL_BYTES
    assert row["bytes_down"] == rounds * 3 * (MODEL_BYTES + 4)
    row = last_row(P.dynamic(delta=0.0, period=1), weighting="examples")
    assert row["bytes_up"] == row["bytes_up_violation"] == rounds * M * (MODEL_BYTES + 4)
    assert row["bytes_down"] == row["bytes_down_model"] == rounds * M * MODEL_BYTES
    assert row["examples"] == row["slots"] == rounds * M * B
    assert last_row(P.none())["bytes_up"] == 0


def test_streams_are_read_in_their_order_again_and_again_or_shared():
    """With a rate of 0 the losses tell which rows were read."""
    data, task = toy.data(), toys.task()
    losses = {}
    for stream in ("repeat", "shared"):
        algorithm = toy.algorithm(P.none(period=5), client_lr=0.0, stream=stream, batch_size=13)
        _, infos = toy.states(algorithm, 4)
        losses[stream] = [float(info["train_loss"]) for info in infos]
    batch = {name: jnp.asarray(column) for name, column in data.examples.items()}
    everything = float(task.loss(toys.init(algorithm).reference, batch, jax.random.key(0))[0].mean())
    # A batch is a learner's whole stream; a shared pool takes 10 of these for all of its rows.
    np.testing.assert_allclose(losses["repeat"], [everything] * 4, rtol=1e-5)
    for r in (0, 2):
        half = losses["shared"][r : r + 2]
        np.testing.assert_allclose(np.mean(half), everything, rtol=1e-5)
        assert abs(half[0] - everything) > 1e-4 * everything
    assert abs(losses["shared"][0] - losses["shared"][2]) > 1e-4 * everything


@pytest.mark.parametrize("width", [13, 50, 64])
def test_a_pass_over_a_shared_pool_reads_no_row_twice(width):
    streams, data = Streams((width,) * M, "shared", None), toy.data()
    examples = jax.tree.map(jnp.asarray, dict(data.examples))
    client = fs.Client(examples, jnp.int32(3), jnp.int32(N), jnp.int32(4))
    batch, take = streams.open(client, jnp.int32(M * N), jnp.int32(0), jax.random.key(0))
    per_pass = M * N // width
    passes = [
        np.concatenate([batch(jnp.int32(t))[0] for t in range(first, first + per_pass)])
        for first in (0, per_pass)
    ]
    for rows in passes:
        assert len(set(rows.tolist())) == len(rows) == per_pass * width
        assert 0 <= rows.min() <= rows.max() < M * N
    assert passes[0].tolist() != passes[1].tolist()
    chosen, _ = batch(jnp.int32(0))
    np.testing.assert_array_equal(
        take(jnp.int32(0), chosen)["y"], data.examples["y"][np.asarray(chosen)]
    )


def test_a_drift_changes_batches_from_its_step_on():
    drift = fs.data.label_drift((4,), num_classes=toys.CLASSES, seed=3)
    settings = {"client_lr": 0.0, "batch_size": 13}
    algorithm = toy.algorithm(P.none(period=2), drift=drift, **settings)
    _, infos = toy.states(algorithm, 4)
    _, without = toy.states(toy.algorithm(P.none(period=2), **settings), 4)
    drifted = [float(info["train_loss"]) for info in infos]
    steady = [float(info["train_loss"]) for info in without]
    assert drifted[:2] == steady[:2]
    assert min(abs(a - b) for a, b in zip(drifted[2:], steady[2:], strict=True)) > 1e-3


@pytest.mark.parametrize("optimizer", [optax.adam, optax.rmsprop])
@pytest.mark.usefixtures("promotion")
def test_optimizers_stay_with_their_learners(optimizer):
    algorithm = toy.algorithm(P.periodic(period=2), optimizer=optimizer, client_lr=0.01)
    states, _ = toy.states(algorithm, 2)
    moments = [leaf for leaf in jax.tree.leaves(states[-1].optimizers) if leaf.ndim > 1]
    assert moments
    assert all(leaf.shape[0] == M for leaf in jax.tree.leaves(states[-1].optimizers))
    assert all(np.ptp(np.asarray(leaf), axis=0).max() > 0 for leaf in moments)
    assert np.ptp(toy.flat(states[-1].learners), axis=0).max() == 0


def test_models_that_are_given_are_where_learners_begin():
    task = toys.task()
    models = [task.init(jax.random.key(seed)) for seed in range(M)]
    algorithm = toy.algorithm(P.dynamic(delta=float("inf"), period=1), initial=models, client_lr=0.0)
    states, _ = toy.states(algorithm, 1)
    expected = np.stack([toy.flat_one(model) for model in models])
    np.testing.assert_array_equal(toy.flat(states[0].learners), expected)
    np.testing.assert_allclose(toy.flat_one(states[0].params), expected.mean(0), rtol=1e-5, atol=1e-7)
    mean = toy.states(toy.algorithm(P.periodic(period=1), initial=models, client_lr=0.0), 1)[0][0]
    np.testing.assert_allclose(toy.flat(mean.learners)[3], expected.mean(0), rtol=1e-5, atol=1e-7)
