"""Poisson cohorts: everybody decides for itself, and too many clients are an error."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.types import ABSENT

N, Q, DRAWS = 40, 0.2, 8_000


@pytest.fixture(scope="module")
def taken():
    """`[DRAWS, N]`, who takes part in each round."""
    sampler, sizes = fs.participation.poisson(Q, most=N), jnp.ones(N, jnp.int32)

    def draw(r):
        cohort, _, info = sampler.draw(jax.random.fold_in(jax.random.key(0), r), r, (), sizes)
        here = jnp.zeros(N, jnp.int32).at[cohort.ids].add(1, mode="drop")
        return here, cohort.count, info["overflow"]

    here, count, overflow = jax.jit(jax.vmap(draw))(jnp.arange(DRAWS, dtype=jnp.int32))
    np.testing.assert_array_equal(count, here.sum(axis=1))
    assert here.max() == 1  # nobody twice
    assert not overflow.any()
    return np.asarray(here, np.float64)


def test_everybody_takes_part_with_probability_q(taken):
    """Within four standard deviations of what the chi-square sum should be."""
    score = ((taken.sum(axis=0) - DRAWS * Q) ** 2).sum() / (DRAWS * Q * (1 - Q))
    assert abs(score - N) < 4 * math.sqrt(2 * N)


def test_clients_decide_independently(taken):
    correlation = np.corrcoef(taken.T)[np.triu_indices(N, 1)] * math.sqrt(DRAWS)
    assert abs((correlation**2).mean() - 1) < 4 * math.sqrt(2 / correlation.size)
    spread = taken.sum(axis=1).var() / (N * Q * (1 - Q))  # as of a binomial number
    assert abs(spread - 1) < 4 * math.sqrt(2 / DRAWS)


def test_rounds_are_independent(taken):
    before, after = taken[:-1].ravel() - Q, taken[1:].ravel() - Q
    assert abs((before * after).mean()) < 4 * Q * (1 - Q) / math.sqrt(before.size)


def test_ids_ascend_and_absent_clients_come_last():
    draw = fs.participation.poisson(0.5, most=8).draw
    cohort, _, info = draw(jax.random.key(3), jnp.int32(0), (), jnp.ones(8, jnp.int32))
    there = int(cohort.count)
    ids = np.asarray(cohort.ids)
    assert 0 < there < 8
    assert (np.diff(ids[:there]) > 0).all()
    assert (ids[there:] == ABSENT).all()
    assert not info["overflow"]


@pytest.mark.parametrize(("q", "expected"), [(1.0, 8), (2**-32, 0)])
def test_the_least_and_the_largest_probability(q, expected):
    draw = fs.participation.poisson(q, most=8).draw
    cohort, _, _ = draw(jax.random.key(3), jnp.int32(0), (), jnp.ones(8, jnp.int32))
    assert int(cohort.count) == expected


def tail(n, q, most):
    """The probability that more than `most` of `n` clients are drawn."""
    return sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(most + 1, n + 1))


@pytest.mark.parametrize(("n", "q"), [(100, 0.1), (1000, 0.01), (50, 0.9)])
def test_places_are_enough_by_the_binomial_tail(n, q):
    least = next(k for k in range(n + 1) if tail(n, q, k) <= 1e-9)
    with pytest.raises(ValueError, match=f"most is {least - 1}, but {n} clients with q = {q}") as raised:
        fs.participation.poisson(q, least - 1).most(n)
    enough = int(str(raised.value).split("at least ")[1].split(",")[0])
    assert least <= enough <= 1.15 * least + 3  # Chernoff's bound is near
    assert fs.participation.poisson(q, enough).most(n) == min(enough, n)
    with pytest.raises(ValueError, match=f"wanted at least {enough}"):
        fs.participation.poisson(q, enough - 1).most(n)


def test_everybody_always_has_a_place():
    assert fs.participation.poisson(0.9, 50).most(10) == 10


def test_more_clients_than_places_are_told():
    draw = fs.participation.poisson(0.9, most=3).draw
    cohort, _, info = draw(jax.random.key(3), jnp.int32(0), (), jnp.ones(8, jnp.int32))
    assert info["overflow"]
    assert cohort.ids.shape == (3,)
    assert int(cohort.count) == 3


@pytest.mark.parametrize("q", [0, -0.1, 1.5, math.nan, 1e-11])
def test_a_strange_probability_is_refused(q):
    with pytest.raises(ValueError, match=r"q is .*; wanted a probability from 2\*\*-32 to 1"):
        fs.participation.poisson(q, 5)


@pytest.mark.parametrize("most", [0, -1, 2.5])
def test_a_strange_number_of_places_is_refused(most):
    with pytest.raises(ValueError, match=f"most is {most}; wanted a whole number"):
        fs.participation.poisson(0.5, most)
