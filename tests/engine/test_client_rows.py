"""Rows of all clients on several devices: each bit arrives, and only where it belongs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from fedjax_sim.core.types import ABSENT
from fedjax_sim.engine.client_rows import make_rows, put_rows, spec_of_rows, take_rows
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD, place

IDS = np.array([9, 3, ABSENT, 0, 4, 5], np.int32)


def make(shared, ids):
    """Rows of many dtypes, with minus zero and a NaN that carries bits."""
    odd = jax.lax.bitcast_convert_type(jnp.uint32(0x7FC12345), jnp.float32)
    x = ids.astype(jnp.float32)[:, None] * jnp.array([[-0.0, 1.5]]) + shared
    keys = jax.lax.map(lambda id: jax.random.fold_in(jax.random.key(1), id), ids)
    return {
        "x": jnp.where(ids[:, None] == 3, odd, x),
        "half": (x - 7).astype(jnp.bfloat16),
        "small": (ids - 5).astype(jnp.int8),
        "flag": ids % 2 == 0,
        "key": keys,
    }


def bits(tree):
    def of(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return np.atleast_1d(array).view(np.uint8)

    return jax.tree.map(of, tree)


@pytest.mark.parametrize(("num_clients", "spec"), [(10, SPREAD), (11, EVERYWHERE)])
def test_rows_are_the_same_to_the_bit_on_two_devices(num_clients, spec):
    layout = toys.layout(devices=2)
    assert spec_of_rows(num_clients, layout) == spec

    @jax.jit
    def run(shared, ids):
        rows = make_rows(make, shared, num_clients, layout)
        taken = take_rows(rows, ids, num_clients, layout)
        return rows, taken, put_rows(rows, ids, make(shared + 1, ids + 1), num_clients, layout)

    rows, taken, after = run(*place((jnp.float32(-0.0), IDS), layout))
    assert rows["x"].sharding.is_fully_replicated == (spec == EVERYWHERE)
    expected = make(jnp.float32(-0.0), jnp.arange(num_clients, dtype=jnp.int32))
    toys.assert_same(bits(rows), bits(expected))
    there = IDS != ABSENT
    of_cohort = jax.tree.map(lambda leaf: leaf[IDS[there]], expected)
    toys.assert_same(bits(jax.tree.map(lambda leaf: leaf[there], taken)), bits(of_cohort))
    new = make(jnp.float32(1), jnp.asarray(IDS + 1))
    written = jax.tree.map(lambda a, b: a.at[IDS[there]].set(b[there]), expected, new)
    toys.assert_same(bits(after), bits(written))


def test_one_device_has_all_rows():
    assert spec_of_rows(10, toys.layout()) == EVERYWHERE
