"""Stages and ends by hand, on updates that are given; no client trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.aggregation import clip, error_feedback, gaussian, krum, mean, median, trimmed_mean
from fedjax_sim.aggregation.clip import l2_norm
from fedjax_sim.compression import quantize, top_k

KEY = jax.random.key(0)


def combine(aggregator, updates, weights, *, states=None, own=None, **hparams):
    """One round on updates `[K, ...]`; returns what the server receives and the clients' memories."""
    rates = {name: jnp.float32(value) for name, value in (aggregator.hparams | hparams).items()}
    view = aggregator.view(aggregator.init(rates) if states is None else states, rates)

    def send(own, update, weight, key):
        output = aggregator.send(view, own, update, weight, (), key)
        return output.message, output.row, output.own

    weights = jnp.asarray(weights, jnp.float32)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(weights.size))
    own = () if own is None else own
    messages, rows, own = jax.vmap(send)(own, updates, weights, keys)
    message = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=leaf.dtype), messages)
    return aggregator.receive(view, message, rows, KEY), own


def updates_of(num_clients, seed=0):
    rng = np.random.default_rng(seed)
    draw = {"w": rng.normal(size=(num_clients, 3, 2)), "b": rng.normal(size=(num_clients, 2))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), draw)


def flat(updates):
    return np.concatenate(
        [np.asarray(updates[name]).reshape(len(updates[name]), -1) for name in "wb"], 1
    )


def flat_one(update):
    return np.concatenate([np.asarray(update[name]).ravel() for name in "wb"])


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_mean_weighs_clients_and_leaves_out_the_empty(weighting):
    updates, sizes = updates_of(4), np.array([3.0, 0.0, 1.0, 4.0])
    updates["w"] = updates["w"].at[1].set(jnp.nan)  # of an empty client
    weights = sizes if weighting == "examples" else (sizes > 0).astype(float)
    received, _ = combine(fs.aggregate(end=mean(weighting)), updates, weights)
    there = [0, 2, 3]
    expected = (weights[there, None] * flat(updates)[there]).sum(0) / weights.sum()
    np.testing.assert_allclose(flat_one(received.update), expected, rtol=1e-5)
    assert float(received.weight) == weights.sum()


def test_clipping_shortens_long_updates_only():
    updates = updates_of(5)
    norms = np.linalg.norm(flat(updates), axis=1)
    limit = float(np.median(norms))
    received, _ = combine(fs.aggregate(clip(limit)), updates, np.ones(5))
    factors = np.minimum(1, limit / norms)
    np.testing.assert_allclose(
        flat_one(received.update), (factors[:, None] * flat(updates)).mean(0), rtol=1e-5
    )
    assert (factors < 1).sum() == 2


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30, np.nan])
def test_norms_neither_overflow_nor_hide_a_nan(size):
    found = float(l2_norm({"a": jnp.float32([3, 0]) * jnp.float32(size), "b": jnp.float32(-4 * size)}))
    np.testing.assert_allclose(found, 5 * size, rtol=1e-6)


def test_an_adaptive_norm_moves_as_in_the_paper():
    updates = updates_of(5)
    norms = np.sort(np.linalg.norm(flat(updates), axis=1))
    start = float(norms[1] + norms[2]) / 2  # two of five are within it
    aggregator = fs.aggregate(clip(start, adaptive=0.7, rate=0.3), end=mean("uniform"))
    received, _ = combine(aggregator, updates, np.ones(5))
    np.testing.assert_allclose(received.states[0], start * np.exp(-0.3 * (2 / 5 - 0.7)), rtol=1e-6)
    np.testing.assert_allclose(received.report["clip_norm"], start, rtol=1e-6)
    # A client without weight counts neither above nor below.
    order = np.argsort(np.linalg.norm(flat(updates), axis=1))
    weights = np.ones(5)
    weights[order[0]] = 0
    received, _ = combine(aggregator, updates, weights)
    np.testing.assert_allclose(received.states[0], start * np.exp(-0.3 * (1 / 4 - 0.7)), rtol=1e-6)
    received, _ = combine(aggregator, updates, np.zeros(5))
    np.testing.assert_allclose(received.states[0], start, rtol=1e-6)


def test_an_adaptive_norm_finds_the_quantile():
    norms = np.random.default_rng(1).lognormal(sigma=1.0, size=200)
    stage = clip(0.01, adaptive=0.8, rate=0.2)
    rates = {name: jnp.float32(value) for name, value in stage.hparams.items()}

    def step(most, _):
        within = (jnp.asarray(norms, jnp.float32) <= most).sum(dtype=jnp.int32)
        return stage.advance(most, rates, within, jnp.int32(200))[0], None

    found, _ = jax.lax.scan(step, stage.init(rates), None, length=400)
    assert np.quantile(norms, 0.77) < float(found) < np.quantile(norms, 0.83)


def test_noise_has_the_multiple_of_the_norm_on_the_sum():
    """With 20,000 coordinates the standard deviation is known to about 0.5 %."""
    updates = {"a": jnp.zeros((4, 15000)), "b": jnp.zeros((4, 5000))}
    aggregator = fs.aggregate(clip(2.0), gaussian(1.5), end=mean("uniform"))
    received, _ = combine(aggregator, updates, [1, 1, 0, 1])
    noise = np.concatenate([np.asarray(received.update[name]) for name in "ab"])
    np.testing.assert_allclose(noise.std(), 1.5 * 2.0 / 3, rtol=0.02)
    assert abs(noise.mean()) < 5 * 1.0 / np.sqrt(noise.size)
    assert abs(np.corrcoef(noise[:5000], noise[15000:])[0, 1]) < 0.1  # arrays draw apart
    silent, _ = combine(aggregator, updates, [1, 1, 0, 1], noise_multiplier=0.0)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(silent.update))


def test_noise_follows_an_adaptive_norm():
    aggregator = fs.aggregate(clip(2.0, adaptive=0.5), gaussian(1.0), end=mean("uniform"))
    updates = {"a": jnp.zeros((2, 20000))}
    received, _ = combine(aggregator, updates, [1, 1], states=(jnp.float32(10.0), ()))
    np.testing.assert_allclose(np.asarray(received.update["a"]).std(), 10.0 / 2, rtol=0.03)


@pytest.mark.parametrize("there", [range(5), [0, 2, 3, 4], [1]])
def test_the_median_is_that_of_the_clients_with_weight(there):
    updates, weights = updates_of(5), np.zeros(5)
    weights[list(there)] = 7
    received, _ = combine(fs.aggregate(end=median()), updates, weights)
    np.testing.assert_allclose(
        flat_one(received.update), np.median(flat(updates)[list(there)], axis=0), rtol=1e-6
    )
    assert float(received.weight) == len(there)


def test_the_median_is_the_same_in_many_blocks(monkeypatch):
    import importlib

    module = importlib.import_module("fedjax_sim.aggregation.median")
    monkeypatch.setattr(module, "_BLOCK", 20)  # 4 coordinates of 5 clients; 6 and 2 do not divide
    updates = updates_of(5)
    received, _ = combine(fs.aggregate(end=median()), updates, np.ones(5))
    np.testing.assert_allclose(flat_one(received.update), np.median(flat(updates), axis=0), rtol=1e-6)


@pytest.mark.parametrize(("fraction", "cut"), [(0.0, 0), (0.2, 1), (0.39, 1), (0.4, 2)])
def test_the_trimmed_mean_drops_as_many_at_each_end(fraction, cut):
    updates, weights = updates_of(6), np.ones(6)
    weights[2] = 0
    received, _ = combine(fs.aggregate(end=trimmed_mean(fraction)), updates, weights)
    kept = np.sort(flat(updates)[[0, 1, 3, 4, 5]], axis=0)[cut : 5 - cut]
    np.testing.assert_allclose(flat_one(received.update), kept.mean(axis=0), rtol=1e-5, atol=1e-6)


def krum_by_hand(updates, f):
    distances = ((updates[:, None] - updates[None]) ** 2).sum(-1)
    nearest = np.sort(distances, axis=1)[:, 1 : len(updates) - f - 1]
    return int(np.argmin(nearest.sum(axis=1)))


@pytest.mark.parametrize("seed", range(3))
def test_krum_takes_the_update_with_the_nearest_neighbours(seed):
    updates = updates_of(7, seed)
    for there in (list(range(7)), [0, 1, 2, 4, 6]):
        weights = np.zeros(7)
        weights[there] = 1
        received, _ = combine(fs.aggregate(end=krum(num_byzantine=1)), updates, weights)
        chosen = there[krum_by_hand(flat(updates)[there], 1)]
        np.testing.assert_array_equal(flat_one(received.update), flat(updates)[chosen])
        assert int(received.report["skipped_rounds"]) == 0


@pytest.mark.parametrize("attack", [100.0, 1e25, np.nan, np.inf])
@pytest.mark.parametrize(
    "end", [median(), trimmed_mean(0.3), krum(num_byzantine=2)], ids=lambda e: e.name
)
def test_two_attackers_of_seven_do_not_move_the_result(attack, end):
    honest = 1 + 0.01 * flat(updates_of(7))
    updates = {"w": jnp.asarray(honest).at[jnp.array([0, 4])].set(attack)}
    received, _ = combine(fs.aggregate(end=end), updates, np.ones(7))
    np.testing.assert_allclose(received.update["w"], 1, atol=0.05)


def test_krum_skips_a_round_with_too_few_clients_and_refuses_fewer_places():
    aggregator = fs.aggregate(end=krum(num_byzantine=2))
    received, _ = combine(aggregator, updates_of(7), [1, 1, 1, 0, 1, 1, 1])
    assert float(received.weight) == 0
    assert int(received.report["skipped_rounds"]) == 1
    with pytest.raises(ValueError, match=r"krum with .*2} needs at least 7 clients a round, and"):
        combine(aggregator, updates_of(6), np.ones(6))


def test_error_feedback_loses_nothing():
    """Small integers, so that sums are exact: what was decoded plus what is left is what was given."""
    aggregator = fs.aggregate(error_feedback(top_k(0.3)), end=mean("uniform"))
    rng, params = np.random.default_rng(0), {"w": jnp.zeros((3, 2)), "b": jnp.zeros((2,))}
    own = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), aggregator.memory(params))
    given, decoded = np.zeros(8), np.zeros(8)
    for _ in range(5):
        shapes = {"w": (4, 3, 2), "b": (4, 2)}
        updates = {n: jnp.asarray(rng.integers(-99, 99, s), jnp.float32) for n, s in shapes.items()}
        received, own = combine(aggregator, updates, [1, 1, 1, 1], own=own)
        given += flat(updates).sum(0)
        decoded += 4 * flat_one(received.update)
    residual = flat(own[0]).sum(0)
    assert np.abs(residual).max() > 0
    np.testing.assert_array_equal(decoded + residual, given)


def test_a_client_without_weight_keeps_its_residual():
    aggregator = fs.aggregate(error_feedback(top_k(0.2)))
    updates = {"w": jnp.full((2, 5), jnp.nan).at[0].set(jnp.arange(5.0))}
    own = ({"w": jnp.ones((2, 5))},)
    received, own = combine(aggregator, updates, [1, 0], own=own)
    np.testing.assert_array_equal(own[0]["w"], [[1, 2, 3, 4, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(received.update["w"], [0, 0, 0, 0, 5])


def test_whole_numbers_are_refused_by_every_end():
    updates = {"w": jnp.ones((7, 2), jnp.int32)}
    for end in (mean(), median(), krum(num_byzantine=1)):
        with pytest.raises(ValueError, match="update holds int32; wanted floats"):
            combine(fs.aggregate(end=end), updates, np.ones(7))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (lambda: fs.aggregate(gaussian(1.0)), "no clip comes before gaussian"),
        (lambda: fs.aggregate(gaussian(1.0), clip(1.0)), "no clip comes before gaussian"),
        (
            lambda: fs.aggregate(clip(1.0), quantize(8), gaussian(1.0)),
            "quantize and gaussian: after quantize no bound holds",
        ),
        (
            lambda: fs.aggregate(clip(1.0), error_feedback(top_k(0.1)), gaussian(1.0)),
            "error_feedback and gaussian: after error_feedback no bound holds",
        ),
        (
            lambda: fs.aggregate(clip(1.0), gaussian(1.0), top_k(0.1)),
            "gaussian and top_k: gaussian changes the sum of all updates",
        ),
        (
            lambda: fs.aggregate(clip(1.0), gaussian(1.0), end=mean("examples")),
            "gaussian and mean: .* weighting='examples' multiplies updates by unbounded weights",
        ),
        (
            lambda: fs.aggregate(clip(1.0), gaussian(1.0), end=median()),
            "gaussian and median: .* median takes them one by one",
        ),
        (
            lambda: fs.aggregate(top_k(0.1), clip(1.0)),
            "top_k and clip: top_k encodes the update, and clip after it .* wanted clip first",
        ),
        (
            lambda: fs.aggregate(top_k(0.1), error_feedback(quantize(8))),
            "top_k and error_feedback: .* wanted one error_feedback around all codecs",
        ),
        (lambda: fs.aggregate(quantize(8), top_k(0.1)), "quantize >> top_k: quantize leaves no floats"),
        (lambda: fs.aggregate(clip(1.0), clip(2.0)), "clip and clip: the chain has it twice"),
        (lambda: fs.aggregate(median(), end=mean()), "the chain has two ends, median and mean"),
        (lambda: fs.aggregate(clip), "is no stage; wanted one such as"),
        (lambda: fs.aggregate(end=median), "wanted an end, such as fs.aggregation.mean"),
        (lambda: fs.aggregate(end=clip(1.0)), "end is clip; wanted an end"),
        (lambda: error_feedback(None), "error_feedback got None, which loses nothing"),
        (lambda: error_feedback(clip(1.0)), "error_feedback got clip, which loses nothing"),
        (lambda: clip(0.0), "clip_norm is 0.0; wanted a number above 0"),
        (lambda: clip(float("inf")), "clip_norm is inf"),
        (lambda: clip(1.0, adaptive=1.0), "clip_quantile is 1.0; wanted a number between 0 and 1"),
        (lambda: clip(1.0, adaptive=0.5, rate=-1.0), "clip_rate is -1.0"),
        (lambda: gaussian(-1.0), "noise_multiplier is -1.0"),
        (lambda: mean("sizes"), "weighting is 'sizes'"),
        (lambda: trimmed_mean(0.5), "trimmed_mean's fraction is 0.5; wanted at least 0, below 0.5"),
        (lambda: krum(num_byzantine=-1), "num_byzantine is -1"),
    ],
)
def test_a_chain_that_makes_no_sense_says_why_when_it_is_built(chain, message):
    with pytest.raises(ValueError, match=message):
        chain()


def test_codecs_in_a_row_are_one_codec_and_top_k_keeps_a_bound():
    found = fs.aggregate(clip(1.0), top_k(0.1), quantize(8))
    assert [stage.name for stage in found.stages] == ["clip", "top_k >> quantize"]
    assert len(fs.aggregate(clip(1.0), top_k(0.1), gaussian(1.0)).stages) == 3
