"""Arrivals against a simulation of events in plain Python, and against queueing theory."""

import collections
import functools
import heapq
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.participation.arrivals import _idle_client

SIZES = np.random.default_rng(0).integers(0, 40, 30).astype(np.int32)
KEY = jax.random.key(7)


@functools.cache
def played(duration, concurrency, buffer, num_rounds):
    """What `num_rounds` rounds draw: ids and lags `[R, K]`, ticks `[R]` and the rounds' infos."""
    sampler, sizes = fs.participation.arrivals(concurrency, buffer, duration), jnp.asarray(SIZES)

    def one_round(state, r):
        cohort, state, info = sampler.draw(jax.random.fold_in(KEY, r), r, state, sizes)
        return state, (cohort.ids, cohort.lag, info)

    rounds = jnp.arange(num_rounds, dtype=jnp.int32)
    _, drawn = jax.jit(functools.partial(jax.lax.scan, one_round))(sampler.init(KEY, sizes), rounds)
    return jax.device_get(drawn)


def simulated(duration, concurrency, buffer, num_rounds):
    """The same by a heap of arrivals in absolute time."""
    randint = jax.jit(lambda key, n: jax.random.randint(key, (), 0, n, jnp.int32))
    seconds_of, now, heap, free = jax.jit(duration), 0, [], set(range(concurrency))
    for r in range(num_rounds):
        key, begun, arrived, start = jax.random.fold_in(KEY, r), itertools.count(), [], now
        while len(arrived) < buffer:
            if free and (not heap or heap[0][0] > now):
                event = jax.random.fold_in(key, next(begun))
                idle = sorted(set(range(SIZES.size)) - {entry[2] for entry in heap})
                client = idle[int(randint(jax.random.fold_in(event, 0), len(idle)))]
                seconds = seconds_of(jax.random.fold_in(event, 1), client, SIZES[client])
                ticks = max(int(np.rint(np.float32(seconds) * np.float32(10_000))), 1)
                place = min(free)
                free.remove(place)
                heapq.heappush(heap, (now + ticks, place, client, r))
            else:
                now, place, client, version = heapq.heappop(heap)
                free.add(place)
                arrived.append((client, r - version))
        yield [k for k, _ in arrived], [lag for _, lag in arrived], now - start


def rounded(key, k, size):
    """Few different durations, so that many clients arrive together."""
    return 0.5 * jax.random.randint(key, (), 0, 4).astype(jnp.float32)


def by_size(key, k, size):
    return 0.01 + 0.1 * size.astype(jnp.float32)


@pytest.mark.parametrize(
    ("duration", "concurrency", "buffer"),
    [
        (fs.participation.exponential(2.0), 12, 5),
        (rounded, 10, 4),
        (by_size, 10, 10),
        pytest.param(fs.participation.half_normal(1.0), 30, 7, marks=pytest.mark.slow),
        pytest.param(by_size, 7, 1, marks=pytest.mark.slow),
    ],
)
def test_arrivals_are_those_of_a_simulation_of_events(duration, concurrency, buffer):
    ids, lag, info = played(duration, concurrency, buffer, 12)
    for r, (clients, lags, ticks) in enumerate(simulated(duration, concurrency, buffer, 12)):
        assert ids[r].tolist() == clients
        assert lag[r].tolist() == lags
        assert np.rint(10_000 * info["cumulative_virtual_seconds"][r].astype(np.float64)) == ticks
        np.testing.assert_allclose(info["mean_lag"][r], np.mean(lags), rtol=1e-6)
    assert lag.max() > 0
    assert not info["strange_duration"].any()


def test_equal_durations_and_a_full_buffer_are_rounds_of_fresh_clients():
    ids, lag, info = played(1.5, 8, 8, 40)
    assert not lag.any()
    assert all(len(set(round_ids)) == 8 for round_ids in ids.tolist())
    assert (info["cumulative_virtual_seconds"] == 1.5).all()
    counts = np.bincount(ids.ravel(), minlength=SIZES.size)
    assert counts.min() > 0
    assert counts.max() < 25  # of 10.7 on average


def test_clients_that_arrive_together_are_replaced_after_the_last():
    """Of 8 clients that arrive at once, the first 4 are one version older than the next 4 make them."""
    _, lag, info = played(2.0, 8, 4, 6)
    np.testing.assert_array_equal(lag, np.array([[0] * 4, [1] * 4] * 3))
    np.testing.assert_array_equal(info["cumulative_virtual_seconds"], [2, 0] * 3)


def test_exponential_durations_give_a_poisson_process():
    """C places that each release a client every m seconds: K releases in `K m / C` seconds.

    Between a client's begin and its arrival, each other place releases one on average.
    """
    rounds, concurrency, buffer, mean = 600, 20, 5, 2.0
    _, lag, info = played(fs.participation.exponential(mean), concurrency, buffer, rounds)
    seconds = info["cumulative_virtual_seconds"].astype(np.float64)
    expected = buffer * mean / concurrency
    assert abs(seconds.mean() / expected - 1) < 4 / math.sqrt(buffer * rounds)
    later = lag[100:].astype(np.float64)
    assert abs(later.mean() - (concurrency - 1) / buffer) < 0.5


@pytest.mark.parametrize(
    ("duration", "mean", "deviation"),
    [
        (fs.participation.exponential(2.0), 2.0, 2.0),
        (fs.participation.half_normal(2.0), 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(1 - 2 / math.pi)),
    ],
)
def test_durations_have_their_mean_and_deviation(duration, mean, deviation):
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    seconds = jax.jit(jax.vmap(lambda key: duration(key, jnp.int32(0), jnp.int32(1))))(keys)
    assert abs(seconds.mean() - mean) < 4 * deviation / math.sqrt(draws)
    np.testing.assert_allclose(seconds.std(), deviation, rtol=0.05)
    assert seconds.min() >= 0


def test_every_idle_client_is_equally_likely():
    draws, at_work = 20_000, jnp.array([7, 0, 2**31 - 1, 3, 4], jnp.int32)
    keys = jax.random.split(jax.random.key(2), draws)
    drawn = jax.jit(jax.vmap(lambda key: _idle_client(key, at_work, 10)))(keys)
    counts = collections.Counter(np.asarray(drawn).tolist())
    assert sorted(counts) == [1, 2, 5, 6, 8, 9]
    expected = draws / 6
    score = sum((count - expected) ** 2 / expected for count in counts.values())
    assert score < 5 + 4 * math.sqrt(10)


@jax.jit
def is_strange(seconds):
    """The sampler's `strange_duration`, of a client that works so long beside one of 16 hours."""
    durations = jnp.stack([seconds, jnp.float32(60_000)])
    sampler = fs.participation.arrivals(2, 2, lambda key, k, size: durations[k])
    sizes = jnp.ones(2, jnp.int32)
    return sampler.draw(KEY, jnp.int32(0), sampler.init(KEY, sizes), sizes)[2]["strange_duration"]


def test_strange_durations_are_told():
    for seconds in (0.0, 1.0, 100_000.0):
        assert not is_strange(seconds), seconds
    for seconds in (-1.0, math.nan, math.inf, -math.inf, 2e5):
        assert is_strange(seconds), seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 6, 1.0), "buffer is 6, but only 5 clients are at work"),
        ((0, 1, 1.0), "concurrency is 0"),
        ((5, 0, 1.0), "buffer is 0"),
        ((5, 5, 0.0), "duration is 0.0; wanted seconds above 0, at most 107374"),
        ((5, 5, math.nan), "duration is nan"),
        ((5, 5, 1e6), "duration is 1000000.0"),
    ],
)
def test_strange_arrivals_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.participation.arrivals(*arguments)


@pytest.mark.parametrize("make", [fs.participation.exponential, fs.participation.half_normal])
def test_strange_parameters_are_refused(make):
    with pytest.raises(ValueError, match=r"is -1; wanted seconds above 0"):
        make(-1)


def test_more_clients_at_work_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"concurrency is 5; wanted at most the federation's 4 clients"):
        fs.participation.arrivals(5, 2, 1.0).most(4)
