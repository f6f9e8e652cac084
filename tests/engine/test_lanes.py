"""The engine's own promises: the plan, the memory, and rows that keep their order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.engine.chunks import _plan
from fedjax_sim.engine.placement import map_rows, pad_rows

plan = jax.jit(_plan, static_argnums=(1, 2))

# K clients on L lanes of D devices.
SHAPES = [(1, 1, 2), (7, 1, 2), (8, 1, 3), (10, 3, 2), (5, 8, 2), (17, 2, 4), (6, 2, 1)]
WORKS = {
    "even": lambda rng, size: np.full(size, 40),
    "ragged": lambda rng, size: rng.integers(0, 100, size),
    "heavy-tailed": lambda rng, size: (10 * rng.lognormal(sigma=2, size=size)).astype(int),
    "empty": lambda rng, size: np.zeros(size, int),
}


def planned(name, seed, size, lanes, devices):
    work = WORKS[name](np.random.default_rng(seed), size)
    plan_ = plan(jnp.asarray(work, jnp.int32)[:, None], lanes, devices)
    return work, *(np.asarray(part) for part in plan_)


def loads_of(cost, owner, devices):
    return np.bincount(owner, weights=cost + 1, minlength=devices)


@pytest.mark.parametrize(("size", "lanes", "devices"), SHAPES)
@pytest.mark.parametrize("name", WORKS)
def test_the_plan_gives_every_client_to_one_lane(name, size, lanes, devices):
    for seed in range(5):
        work, chunks, cost, owner = planned(name, seed, size, lanes, devices)
        assert chunks.shape == (-(-size // lanes), lanes)
        members = chunks.ravel()
        np.testing.assert_array_equal(np.sort(members[:size]), np.arange(size))
        assert (members[size:] == size).all()  # empty lanes come last, so no chunk is empty
        np.testing.assert_array_equal(cost, [max(work[c[c < size]]) for c in chunks])
        assert (np.diff(cost) <= 0).all()
        assert ((owner >= 0) & (owner < devices)).all()


@pytest.mark.parametrize(("size", "lanes", "devices"), SHAPES)
@pytest.mark.parametrize("name", WORKS)
def test_the_plan_is_within_a_third_of_the_best_there_is(name, size, lanes, devices):
    for seed in range(5):
        _, _, cost, owner = planned(name, seed, size, lanes, devices)
        loads = loads_of(cost, owner, devices)
        assert loads.max() - loads.min() <= cost[0] + 1
        if devices ** len(cost) <= 10_000:
            choices = itertools.product(range(devices), repeat=len(cost))
            best = min(loads_of(cost, np.array(choice), devices).max() for choice in choices)
            assert loads.max() <= best * 4 / 3


def test_the_cost_of_a_chunk_is_its_longest_client_in_each_loop():
    work = jnp.array([[60, 0], [0, 240], [200, 50], [0, 50]], jnp.int32)
    chunks, cost, _ = plan(work, 2, 1)
    np.testing.assert_array_equal(chunks, [[2, 1], [0, 3]])
    np.testing.assert_array_equal(cost, [200 + 240, 60 + 50])


@pytest.mark.parametrize("devices", [2, 4])
def test_a_client_with_half_the_work_has_a_device_to_itself(devices):
    work = np.array([3, 5, 2, 71, 4, 6, 7, 8, 5, 9, 6, 5])  # the rest: 60, and 11 trips
    by_loop = jnp.asarray(work, jnp.int32)[:, None]
    chunks, cost, owner = (np.asarray(part) for part in plan(by_loop, 1, devices))
    assert chunks[0] == [3]
    assert (owner == owner[0]).sum() == 1
    others = np.delete(loads_of(cost, owner, devices), owner[0])
    assert others.max() - others.min() <= 10


@pytest.mark.parametrize(("lanes", "devices"), [(1, 1), (3, 1), (64, 1), (1, 2), (3, 2), (64, 2)])
def test_clients_are_summed_with_their_weights(data, lanes, devices):
    ids = [9, 3, 0, 2, 5]

    def client(shared, own_k, client, key):
        # An update that is not zero for an absent client would show if its lane counted.
        size = client.size.astype(jnp.float32)
        message = fs.engine.weigh({"id": shared + client.id.astype(jnp.float32)}, size + 1)
        return fs.ClientOutput(message, {"seen": client.size, "clients": jnp.float32(1)})

    @jax.jit
    def run(data, cohort):
        def work(sizes, keys):
            return 2 * sizes[:, None]

        key = jax.random.key(0)
        return fs.engine.map_clients(client, jnp.float32(10), data, cohort, key=key, work=work)

    where = toys.layout(lanes, devices)
    cohort = fs.Cohort(fs.engine.place(jnp.array(ids, jnp.int32), where), where)
    sums = run(fs.engine.place(data, where), cohort)
    sizes = np.asarray(data.sizes)[ids]
    np.testing.assert_allclose(sums.message.total["id"], ((sizes + 1) * (10 + np.array(ids))).sum())
    assert float(sums.message.weight) == (sizes + 1).sum()
    assert int(sums.metrics["seen"]) == sizes.sum()
    assert float(sums.metrics["clients"]) == len(ids)
    # Lanes beyond what the cohort fills are not executed.
    lanes = min(lanes, -(-len(ids) // devices))
    assert int(sums.slots) == sum(2 * lanes * work for work in sorted(sizes, reverse=True)[::lanes])


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_client_without_weight_adds_nothing_whatever_it_computes(data, lanes):
    """Who has no examples may divide by their number."""

    def client(shared, own_k, client, key):
        size = client.size.astype(jnp.float32)
        return fs.ClientOutput(fs.engine.weigh({"inverse": shared / size}, size), {})

    @jax.jit
    def run(data, cohort):
        key = jax.random.key(0)
        return fs.engine.map_clients(
            client, jnp.float32(2), data, cohort, key=key, work=lambda sizes, keys: sizes[:, None]
        )

    sums = run(data.place(jax.local_devices()[0]), fs.Cohort(jnp.array([2, 0, 4]), toys.layout(lanes)))
    np.testing.assert_allclose(sums.message.total["inverse"], 4, rtol=1e-6)


def working_memory(cohort_size, lanes, devices):
    """Bytes that a compiled round of 100 clients needs beside its arguments and results."""
    algorithm = fs.fed_avg(toys.task(1000), client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    data = toys.federation(np.random.default_rng(0).integers(1, 20, size=100))
    where = toys.layout(lanes, devices)
    ids = jnp.arange(cohort_size, dtype=jnp.int32)
    key, state, data, ids = fs.engine.place((jax.random.key(0), toys.init(algorithm), data, ids), where)
    lowered = toys.round_of(algorithm).lower(key, state, data, fs.Cohort(ids, where))
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_grows_with_the_lanes_and_not_with_the_cohort():
    few, many = (working_memory(size, 2, devices=2) for size in (10, 100))
    assert few > 0
    assert abs(many - few) < 0.1 * few
    assert working_memory(100, 8, devices=2) > 2 * many


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    ("n", "asked", "given"), [(1, 4, (1, 1)), (7, 4, (4, 4)), (8, 4, (4, 4)), (23, 100, (23, 12))]
)
def test_rows_keep_their_order(n, asked, given, devices):
    where = toys.layout(devices=devices)
    rng = np.random.default_rng(0)
    rows = {
        "x": rng.normal(size=(n, 2, 3)).astype(np.float32),
        "i": np.arange(1, n + 1, dtype=np.int32),
    }
    placed, batch_size = pad_rows(rows, where, asked)
    assert batch_size == given[devices - 1]
    padded = len(placed["i"])
    assert padded % (devices * batch_size) == 0
    assert n <= padded < n + devices * batch_size
    for name, column in rows.items():
        np.testing.assert_array_equal(placed[name][:n], column)
        assert not np.asarray(placed[name][n:]).any()

    def fn(factor, batch):
        assert batch["x"].shape == (batch_size, 2, 3)
        return {"sum": factor * batch["x"].sum((1, 2)), "i": batch["i"]}

    apply = jax.jit(lambda factor, rows: map_rows(fn, factor, rows, where, batch_size=batch_size))
    outputs = apply(fs.engine.place(jnp.float32(3), where), placed)
    assert len(outputs["i"]) == padded
    np.testing.assert_array_equal(outputs["i"][:n], rows["i"])
    np.testing.assert_allclose(outputs["sum"][:n], 3 * rows["x"].sum((1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lanes", [0, -1])
def test_a_layout_needs_a_lane(lanes):
    with pytest.raises(ValueError, match="at least 1 lane"):
        fs.Layout(lanes)
