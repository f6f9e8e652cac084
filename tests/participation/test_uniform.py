"""Sampling of cohorts: distinct clients, everybody equally likely, at a cost that ignores N."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import subjaxprs

from fedjax_sim.participation.uniform import sample_cohort

DRAWS = 50_000


@functools.cache
def drawn(num_clients, cohort_size):
    """`[DRAWS, K]`, one cohort per key."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: sample_cohort(key, num_clients, cohort_size)))(keys))


def assert_equally_likely(counts, expected, variance):
    """Within four standard deviations of what the chi-square sum should be."""
    score = ((counts - expected) ** 2 / variance).sum()
    freedom = counts.size - 1
    assert abs(score - freedom) < 4 * math.sqrt(2 * freedom)


@given(st.integers(1, 10**9), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None)
def test_clients_are_distinct_and_in_range(num_clients, cohort_size, seed):
    cohort_size = min(cohort_size, num_clients)
    ids = np.asarray(sample_cohort(jax.random.key(seed), num_clients, cohort_size))
    assert ids.shape == (cohort_size,)
    assert ids.dtype == np.int32
    assert len(set(ids.tolist())) == cohort_size
    assert ids.min() >= 0
    assert ids.max() < num_clients


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(100, 10), (20, 19), (3, 1), (7, 4)])
def test_every_draw_is_distinct_and_in_range(num_clients, cohort_size):
    ids = np.sort(drawn(num_clients, cohort_size), axis=1)
    assert (np.diff(ids, axis=1) > 0).all()
    assert ids[:, 0].min() == 0
    assert ids[:, -1].max() == num_clients - 1


@pytest.mark.parametrize("num_clients", [1, 2, 100])
def test_a_cohort_of_all_is_everybody_in_order(num_clients):
    ids = sample_cohort(jax.random.key(3), num_clients, num_clients)
    np.testing.assert_array_equal(ids, np.arange(num_clients, dtype=np.int32))


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(100, 10), (20, 19), (3, 1), (7, 4)])
def test_every_client_is_equally_likely(num_clients, cohort_size):
    counts = np.bincount(drawn(num_clients, cohort_size).ravel(), minlength=num_clients)
    share = cohort_size / num_clients
    # Inclusions exclude one another, which makes their sum of squares a chi-square of N - 1 degrees
    # once each is scaled by the variance of sampling without replacement.
    variance = DRAWS * share * (1 - share) * num_clients / (num_clients - 1)
    assert_equally_likely(counts, DRAWS * share, variance)


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(5, 2), (6, 3)])
def test_every_subset_is_equally_likely(num_clients, cohort_size):
    subsets = list(itertools.combinations(range(num_clients), cohort_size))
    chosen = np.sort(drawn(num_clients, cohort_size), axis=1)
    counts = np.array([(chosen == subset).all(axis=1).sum() for subset in subsets])
    assert counts.sum() == DRAWS
    expected = DRAWS / len(subsets)
    assert_equally_likely(counts, expected, expected)


def test_the_key_picks_the_cohort():
    first, again, other = (sample_cohort(jax.random.key(seed), 1000, 20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(10, 0), (10, -1), (10, 11), (0, 1), (0, 0)])
def test_an_impossible_cohort_is_refused(num_clients, cohort_size):
    with pytest.raises(ValueError, match=f"cohort of {cohort_size} cannot be drawn"):
        sample_cohort(jax.random.key(0), num_clients, cohort_size)


def largest_array(jaxpr):
    """The most elements that any value of a program holds, inner programs included."""
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [largest_array(sub) for sub in subjaxprs(jaxpr)]
    return max(sizes + inner, default=0)


def test_memory_ignores_the_number_of_clients():
    def program(num_clients):
        return jax.make_jaxpr(lambda key: sample_cohort(key, num_clients, 10))(jax.random.key(0))

    assert largest_array(program(1_000_000).jaxpr) == largest_array(program(100).jaxpr) <= 200


def test_a_table_of_all_clients_would_be_noticed():
    def by_table(key):
        return jax.random.permutation(key, jnp.arange(1_000_000))[:10]

    assert largest_array(jax.make_jaxpr(by_table)(jax.random.key(0)).jaxpr) >= 1_000_000
