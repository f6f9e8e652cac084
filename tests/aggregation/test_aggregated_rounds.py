"""Rounds with aggregators: on any lanes and devices, in every algorithm, in runs that are resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.aggregation import (
    clip,
    error_feedback,
    gaussian,
    keep_updates,
    krum,
    mean,
    median,
    trimmed_mean,
)
from fedjax_sim.compression import num_bytes, quantize, top_k
from fedjax_sim.compression.wire import pack
from fedjax_sim.core import trees

pytestmark = pytest.mark.usefixtures("quick_compilation")

IDS = [9, 3, 0, 2, 5, 4, 8]  # client 2 is empty
ALGORITHMS = {
    "fed_avg": (fs.fed_avg, {"local_epochs": 1, "batch_size": 4}),
    "fed_nova": (fs.fed_nova, {"local_epochs": 1, "batch_size": 4}),
    "fed_prox": (fs.fed_prox, {"local_epochs": 1, "batch_size": 4, "mu": 0.5}),
    "fed_sgd": (fs.fed_sgd, {}),
}


@pytest.fixture(scope="module")
def linear():
    """Logistic regression, which compiles quickly."""
    return fs.models.classifier(fs.models.MLP((toys.CLASSES,)), (toys.FEATURES,))


def fed_sgd(task, *stages, end=None, **settings):
    aggregator = fs.aggregate(*stages, end=end)
    return fs.fed_sgd(task, client_lr=0.5, aggregator=aggregator, **settings)


def params_of(state):
    return jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_mean_is_what_an_algorithm_does_without_an_aggregator(task, data, name):
    make, settings = ALGORITHMS[name]
    plain, info = toys.play(make(task, client_lr=0.1, **settings), data, IDS)
    chosen = make(task, client_lr=0.1, aggregator=fs.aggregate(end=mean("examples")), **settings)
    state, told = toys.play(chosen, data, IDS)
    toys.assert_same(state, plain)
    toys.assert_same(told, info)
    assert "aggregator" in chosen.settings
    assert "aggregator" not in make(task, client_lr=0.1, **settings).settings


@pytest.mark.parametrize(
    "name",
    [
        "fed_avg",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fed_nova", "fed_prox", "fed_sgd")),
    ],
)
def test_every_algorithm_keeps_updates_apart_and_averages_them_as_before(task, data, name):
    def of_rows(updates, present):
        return jax.tree.map(lambda rows: rows.sum(axis=0) / present.sum().astype(rows.dtype), updates)

    make, settings = ALGORITHMS[name]
    plain, _ = toys.play(make(task, client_lr=0.1, weighting="uniform", **settings), data, IDS)
    aggregator = fs.aggregate(end=keep_updates("mean of rows", of_rows, {}))
    chosen = make(task, client_lr=0.1, aggregator=aggregator, weighting="uniform", **settings)
    state, _ = toys.play(chosen, data, [*IDS, fs.engine.ABSENT])
    toys.assert_close(state, plain, rtol=1e-4, atol=1e-6)


def test_a_median_counts_neither_absent_nor_empty_clients(linear, data):
    algorithm = fed_sgd(linear, end=median())
    start = toys.init(algorithm)
    state, _ = toys.play(algorithm, data, [*IDS, fs.engine.ABSENT, fs.engine.ABSENT])
    of_one = fs.fed_sgd(linear, client_lr=0.5)
    alone = [params_of(toys.play(of_one, data, [k])[0]) for k in IDS if k != 2]
    steps = jax.tree.map(lambda w, *ws: np.median([v - w for v in ws], axis=0), start.params, *alone)
    toys.assert_close(params_of(state), trees.add(start.params, steps), rtol=1e-4, atol=1e-6)


def test_a_round_without_any_client_changes_nothing(linear, data):
    for end in (median(), mean()):
        algorithm = fed_sgd(linear, end=end)
        state, _ = toys.play(algorithm, data, [2, fs.engine.ABSENT])
        toys.assert_same(params_of(state), params_of(toys.init(algorithm)))


@pytest.mark.slow
def test_krum_trains_although_an_attacker_has_swapped_labels_and_a_huge_loss(linear):
    """The attacker's rows are so large that its gradient is, too; the mean follows it, Krum does not."""
    honest = toys.federation((20, 20, 20, 20, 20))
    x = np.array(honest.examples["x"])
    x[:20] *= -1000
    data = fs.data.federate(
        fs.data.from_arrays(x, np.asarray(honest.examples["y"]), num_classes=toys.CLASSES),
        [np.arange(20 * k, 20 * k + 20) for k in range(5)],
    )
    evaluate = fs.evaluator(linear, toys.dataset(100, seed=1), layout=fs.Layout())
    losses = {}
    for end in (mean(), krum(num_byzantine=1)):
        state, _ = toys.play(fed_sgd(linear, end=end), data, rounds=10)
        losses[end.name] = evaluate(state.params)["test_loss"]
    assert losses["krum"] < 1.0 < 10 < losses["mean"]


def test_a_cohort_too_small_for_krum_is_refused_before_training(linear, data):
    with pytest.raises(ValueError, match="needs at least 7 clients a round, and a round has 5"):
        fs.simulate(
            fed_sgd(linear, end=krum(num_byzantine=2)),
            data,
            key=jax.random.key(0),
            num_rounds=1,
            client_fraction=0.5,
        )


def test_another_norm_and_another_noise_compile_nothing(linear, data):
    algorithm = fed_sgd(linear, clip(1.0, adaptive=0.5), gaussian(1.0), weighting="uniform")
    round_fn, data = toys.round_of(algorithm), jax.tree.map(jnp.asarray, data)

    def play(**hparams):
        cohort = fs.Cohort(jnp.asarray([3, 5], jnp.int32))
        return round_fn(jax.random.key(0), toys.init(algorithm, **hparams), data, cohort)

    first, _ = play()
    with fs.runtime.CompilationCounter() as counter:
        loud, _ = play(noise_multiplier=100.0)
        _, info = play(clip_norm=2.5)
    assert counter.count == 0
    assert toys.largest_difference(loud.params, first.params) > 1
    assert float(info["clip_norm"]) == 2.5


def test_bad_values_and_weights_are_refused_with_the_algorithm(linear, data):
    chain = fs.aggregate(clip(1.0), gaussian(1.0))
    for make, more in ALGORITHMS.values():
        with pytest.raises(ValueError, match=r"gaussian and mean: .* weighting='examples'"):
            make(linear, client_lr=0.1, aggregator=chain, **more)
        with pytest.raises(ValueError, match=r"aggregator is <function median.*wanted one that fs\.agg"):
            make(linear, client_lr=0.1, aggregator=median, **more)
    algorithm = fed_sgd(linear, clip(1.0))
    with pytest.raises(ValueError, match=r"clip_norm is 0\.0; wanted a number above 0"):
        fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=1, hparams={"clip_norm": 0})


def test_the_ledger_counts_what_is_encoded_and_the_norm_that_comes_down(linear, data):
    algorithm = fed_sgd(linear, clip(1.0, adaptive=0.5), top_k(0.25) >> quantize(4))
    rows = fs.simulate(
        algorithm, data, key=jax.random.key(0), num_rounds=2, client_fraction=0.3, eval_every=2
    ).rows
    model = 4 * (toys.FEATURES * toys.CLASSES + toys.CLASSES)
    # Biases, 1 of 3: an index of 2 bits, a code of 4, two limits; weights, 5 of 18, with indices of 5
    # bits; and the bit of the norm.
    up = (1 + 1 + 8) + (4 + 3 + 8) + 1
    assert rows[-1]["bytes_up"] == 2 * 3 * up
    assert rows[-1]["bytes_down"] == 2 * 3 * (model + 4)


def remembered(clients):
    return clients.rows(range(10)) if hasattr(clients, "rows") else clients


@pytest.mark.parametrize("placement", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_a_run_with_residuals_resumes_to_the_bit(linear, data, tmp_path, placement):
    algorithm = fed_sgd(linear, clip(0.5, adaptive=0.5), error_feedback(top_k(0.2) >> quantize(6)))
    settings = {"key": jax.random.key(3), "client_fraction": 0.5, "layout": fs.Layout()}
    settings |= {"eval_every": 1, "data_placement": placement, "checkpoint_seconds": 0.0}
    whole = fs.simulate(algorithm, data, num_rounds=4, **settings)
    home = tmp_path / "w"
    fs.simulate(algorithm, data, num_rounds=2, workdir=home, **settings)
    resumed = fs.simulate(algorithm, data, num_rounds=4, workdir=home, **settings)
    ends = [(result.state.server, remembered(result.state.clients)) for result in (resumed, whole)]
    toys.assert_same(*ends)
    residuals = jax.tree.leaves(ends[1][1])
    assert any(np.asarray(leaf).any() for leaf in residuals)
    other = fed_sgd(linear, clip(0.5, adaptive=0.5), error_feedback(top_k(0.2) >> quantize(7)))
    with pytest.raises(ValueError, match="aggregator"):
        fs.simulate(other, data, num_rounds=5, workdir=home, **settings)


@pytest.mark.slow
def test_a_sweep_of_noise_has_the_runs_that_simulate_has(linear, data):
    algorithm = fed_sgd(linear, clip(0.5), gaussian(1.0), weighting="uniform")
    settings = {"num_rounds": 3, "client_fraction": 0.5, "eval_every": 3, "layout": fs.Layout()}
    swept = fs.sweep(algorithm, data, hparams={"noise_multiplier": [0.0, 2.0]}, seeds=[0], **settings)
    for run in swept.runs:
        alone = fs.simulate(algorithm, data, key=jax.random.key(0), hparams=run.hparams, **settings)
        toys.assert_close(run.state, alone.state, rtol=1e-4, atol=1e-6)


CODECS = st.sampled_from([top_k(0.2), quantize(3), top_k(0.2) >> quantize(3)])
STAGES = st.one_of(
    st.sampled_from([clip(0.5), clip(0.5, adaptive=0.5), gaussian(0.5)]),
    CODECS,
    CODECS.map(error_feedback),
)
ENDS = st.sampled_from(
    [mean(), mean("uniform"), mean("examples"), median(), trimmed_mean(0.2), krum(num_byzantine=1)]
)


def check_chain(task, data, stages, end):
    """The chain is refused, or a round runs and the ledger counts the packed bytes."""
    refused = None
    try:
        algorithm = fed_sgd(task, *stages, end=end)
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert " and " in refused or "leaves no floats" in refused
        return
    state, info = toys.play(algorithm, data, IDS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params_of(state)))
    assert np.isfinite(info["train_loss"])
    aggregator, server = fs.aggregate(*stages, end=end), state.server if algorithm.memory else state
    view = aggregator.view(server.extra, server.hparams)
    own = aggregator.memory(server.params)
    sent, _, asides = aggregator.encode(view, own, server.params, jax.random.key(1))
    size = algorithm.message_bytes(server)["up_update"]
    assert len(pack((sent, asides))) == num_bytes((sent, asides)) == size


CASES = given(stages=st.lists(STAGES, max_size=3), end=ENDS)


@CASES
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_chain_is_refused_or_runs(linear, data, stages, end):
    check_chain(linear, data, stages, end)


@pytest.mark.slow
@CASES
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_chain_is_refused_or_runs(linear, data, stages, end):
    check_chain(linear, data, stages, end)
