"""The permutation without a table: one to one for every size, and every order equally likely."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.core import permutation as module
from fedjax_sim.core.permutation import permutation

DRAWS = 100_000


def written_down(key, size):
    positions = jnp.arange(size, dtype=jnp.int32)
    return np.asarray(permutation(key, jnp.int32(size))(positions))


@jax.jit
def padded(key, size):
    """The first 1024 values; those at `size` and beyond mean nothing."""
    return permutation(key, size)(jnp.arange(1024, dtype=jnp.int32))


def chi_square_score(counts):
    """By how many standard deviations the counts differ from equal ones; about normal if they are."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def uniformity_score(size):
    """`chi_square_score` over all `size!` orders, for fixed keys."""
    keys = jax.random.split(jax.random.key(7), DRAWS)
    positions = jnp.arange(size, dtype=jnp.int32)
    values = jax.jit(jax.vmap(lambda key: permutation(key, jnp.int32(size))(positions)))(keys)
    codes = np.asarray(values) @ (size ** np.arange(size))
    _, counts = np.unique(codes, return_counts=True)
    return chi_square_score(np.pad(counts, (0, math.factorial(size) - counts.size)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 600, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_every_value_comes_once(size, seed):
    values = np.asarray(padded(jax.random.key(seed), jnp.int32(size)))[:size]
    np.testing.assert_array_equal(np.sort(values), np.arange(size))


@given(size=st.integers(1, 1024), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_every_value_comes_once_for_any_size(size, seed):
    values = np.asarray(padded(jax.random.key(seed), jnp.int32(size)))[:size]
    np.testing.assert_array_equal(np.sort(values), np.arange(size))


def test_a_large_size_is_still_one_to_one():
    values = written_down(jax.random.key(0), 1_000_003)
    assert values.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(values, minlength=1_000_003), 1)


def test_the_key_picks_the_permutation():
    first, again, other = (written_down(jax.random.key(seed), 50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8


def test_positions_may_come_in_any_shape_and_order():
    key = jax.random.key(0)
    values = written_down(key, 12)
    asked = jnp.array([[11, 0, 5], [5, 5, 2]], jnp.int32)
    np.testing.assert_array_equal(permutation(key, jnp.int32(12))(asked), values[np.asarray(asked)])


@pytest.mark.slow
def test_a_traced_size_gives_what_a_known_size_gives():
    sizes = [1, 2, 3, 7, 10, 600, 1000]
    keys = jax.random.split(jax.random.key(5), len(sizes))
    lanes = jax.vmap(padded)(keys, jnp.array(sizes, jnp.int32))
    for key, size, lane in zip(keys, sizes, lanes, strict=True):
        known = written_down(key, size)
        np.testing.assert_array_equal(lane[:size], known)
        np.testing.assert_array_equal(padded(key, jnp.int32(size))[:size], known)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_is_equally_likely(size):
    assert abs(uniformity_score(size)) < 4


@pytest.mark.parametrize("size", [2, 4])
def test_too_few_rounds_would_be_noticed(size, monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", 6)
    assert uniformity_score(size) > 8


def test_neighbours_go_to_every_pair_of_places_equally_often():
    size = 50
    keys = jax.random.split(jax.random.key(11), 4 * DRAWS)
    positions = jnp.array([24, 25], jnp.int32)
    values = jax.jit(jax.vmap(lambda key: permutation(key, jnp.int32(size))(positions)))(keys)
    first, second = np.asarray(values).T
    counts = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert not counts.diagonal().any()
    assert abs(chi_square_score(counts[~np.eye(size, dtype=bool)])) < 4
    # Neighbours that stayed neighbours would mix the batches of an epoch badly.
    adjacent = (np.abs(first - second) == 1).sum()
    expected = 4 * DRAWS * 2 / size
    assert abs(adjacent - expected) < 4 * math.sqrt(expected)
