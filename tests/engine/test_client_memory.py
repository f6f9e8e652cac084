"""Clients' memory and rows: the same on any lanes and devices, untouched for clients that are absent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.simulation.host_rounds import CohortPrefetcher

IDS = [9, 3, 0, 2, 5, 4, 8]


def scaffold(task):
    return fs.scaffold(task, client_lr=0.2, local_epochs=2, batch_size=4)


@pytest.mark.parametrize(
    ("lanes", "devices"),
    [
        (1, 2),
        *(pytest.param(*where, marks=pytest.mark.slow) for where in ((2, 1), (3, 2), (3, 1), (16, 1))),
    ],
)
@pytest.mark.usefixtures("quick_compilation")
def test_memory_is_the_same_on_other_lanes_and_devices(task, data, lanes, devices):
    algorithm = scaffold(task)
    alone, info = toys.play(algorithm, data, IDS, rounds=3)
    others, told = toys.play(algorithm, data, IDS, rounds=3, where=toys.layout(lanes, devices))
    toys.assert_close(others, alone, rtol=1e-4, atol=1e-5)
    assert int(told["examples"]) == int(info["examples"])


@pytest.mark.usefixtures("quick_compilation")
def test_memory_of_absent_and_empty_clients_is_as_before(task, data):
    start = toys.init(scaffold(task))
    after, _ = toys.play(scaffold(task), data, IDS, rounds=2, where=toys.layout(3))
    for before, now in zip(*(jax.tree.leaves(s.clients) for s in (start, after)), strict=True):
        changed = np.asarray((before != now).reshape(10, -1).any(axis=1))
        assert not changed[[1, 6, 7]].any()  # absent
        assert not changed[2]  # empty
    assert trained(start, after) == sorted(set(IDS) - {2})


def trained(before, after):
    """Clients of which any number has changed."""
    leaves = zip(*(jax.tree.leaves(state.clients) for state in (before, after)), strict=True)
    changed = [np.asarray(a != b).reshape(10, -1).any(axis=1) for a, b in leaves]
    return np.flatnonzero(np.any(changed, axis=0)).tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_memory_where_each_device_has_rows_of_its_own(task, data):
    """As with several processes; the cohort is the same on all devices, and so is the memory."""
    algorithm, layout = scaffold(task), toys.layout(1, 2)
    with CohortPrefetcher(
        data, jax.random.key(5), toys.draws(data, 7), layout, num_rounds=1, spread=True
    ) as feed:
        fed = feed.cohort(0)
    ids = np.asarray(fed.drawn.cohort.ids)
    before, _ = toys.play(algorithm, data)  # so that everybody remembers something
    state = fs.engine.place(before, layout)
    key = fs.engine.place(jax.random.fold_in(jax.random.key(1), 0), layout)
    ours, _ = toys.round_of(algorithm)(key, state, fed.data, fed.drawn.cohort)
    theirs, _ = toys.play(algorithm, data, ids, state=before, where=layout)
    toys.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("lanes", "devices"), [(1, 1), (3, 1), (2, 2)])
def test_rows_stand_in_the_order_of_the_cohort_and_messages_keep_their_type(data, lanes, devices):
    def client(shared, own_k, client, key):
        message = client.id.astype(jnp.uint32) + jnp.uint32(2**32 - 20)
        return fs.ClientOutput(
            message, (), own=own_k + client.size, row={"id": client.id, "odd": client.id % 2 == 1}
        )

    def work(sizes, keys):
        return sizes[:, None]

    @jax.jit
    def run(own, data, cohort):
        key = jax.random.key(0)
        return fs.engine.map_clients(client, (), data, cohort, key=key, work=work, own=own)

    where = toys.layout(lanes, devices)
    ids = jnp.array([9, fs.engine.ABSENT, 3, 0, 5], jnp.int32)
    own = jnp.array([10, 20, 30, 40, 50], jnp.int32)
    own, data_there, cohort = fs.engine.place((own, data, fs.Cohort(ids, where)), where)
    result = run(own, data_there, cohort)
    sizes = np.asarray(data.sizes)
    np.testing.assert_array_equal(result.rows["id"], [9, 0, 3, 0, 5])
    np.testing.assert_array_equal(result.rows["odd"], [True, False, True, False, True])
    np.testing.assert_array_equal(
        result.own, [10 + sizes[9], 20, 30 + sizes[3], 40 + sizes[0], 50 + sizes[5]]
    )
    assert result.message.dtype == jnp.uint32
    assert int(result.message) == (17 + 4 * (2**32 - 20)) % 2**32  # it wraps


def test_other_memory_than_was_given_is_refused(data):
    def client(shared, own_k, client, key):
        return fs.ClientOutput((), (), own=own_k.astype(jnp.int32))

    cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(ValueError, match=r"received state float32\[2\] but returned int32\[2\]"):
        fs.engine.map_clients(
            client,
            (),
            data,
            cohort,
            key=jax.random.key(0),
            work=lambda s, k: s[:, None],
            own=jnp.ones((3, 2)),
        )


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_clients_may_remember_prng_keys(data):
    def client(shared, own_k, client, key):
        return fs.ClientOutput((), (), own=jax.random.fold_in(own_k, client.id))

    keys = jax.random.split(jax.random.key(0), 5)
    cohorts = [
        fs.Cohort(jnp.array([4, 2, 0, fs.engine.ABSENT, 9], jnp.int32), toys.layout(lanes, devices))
        for lanes, devices in ((1, 1), (2, 1), (1, 2))
    ]
    own = [
        fs.engine.map_clients(
            client, (), data, cohort, key=keys[0], work=lambda s, k: s[:, None], own=keys
        ).own
        for cohort in cohorts
    ]
    expected = [
        key if id == fs.engine.ABSENT else jax.random.fold_in(key, id)
        for key, id in zip(keys, [4, 2, 0, fs.engine.ABSENT, 9], strict=True)
    ]
    for found in own:
        toys.assert_same(jax.random.key_data(found), jax.random.key_data(jnp.stack(expected)))


def test_memory_that_does_not_fit_is_refused(task, data, monkeypatch):
    from fedjax_sim.simulation import client_memory

    settings = {"num_rounds": 1, "layout": fs.Layout()}
    on_device = {"data_placement": "device", "key": jax.random.key(0)}
    needed = 10 * 4 * sum(leaf.size for leaf in jax.tree.leaves(task.init(jax.random.key(0))))
    monkeypatch.setattr(client_memory, "machine_bytes", lambda: needed - 1)
    with pytest.raises(
        ValueError, match=r"memory of 10 clients takes .* GB in 1 copies, and there are .* GB"
    ):
        fs.simulate(scaffold(task), data, **on_device, **settings)
    monkeypatch.setattr(client_memory, "machine_bytes", lambda: 4 * needed - 1)
    with pytest.raises(ValueError, match="in 4 copies"):
        fs.sweep(scaffold(task), data, hparams={"client_lr": [0.1, 0.2]}, **settings)


@pytest.mark.parametrize("make", [fs.scaffold, fs.fed_nova, fs.fed_prox], ids=lambda make: make.__name__)
def test_models_in_bfloat16_keep_their_dtype(task, data, make):
    """Traced alone: what a client returns has the dtype that it was given."""

    def half(key):
        return jax.tree.map(lambda w: w.astype(jnp.bfloat16), task.init(key))

    more = {"mu": 0.1, "client_optimizer": functools.partial(optax.sgd, momentum=0.5)}
    algorithm = make(
        task._replace(init=half),
        client_lr=0.1,
        local_epochs=2,
        batch_size=4,
        **(more if make is fs.fed_prox else {}),
    )
    with jax.numpy_dtype_promotion("standard"):
        state = toys.init(algorithm)
        cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32))
        after, _ = jax.eval_shape(toys.round_of(algorithm), jax.random.key(0), state, data, cohort)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda given, new: given, "returns the memory that it was given, so clients would never"),
        (lambda given, new: (), r"returns the memory \(\); wanted \{.*float32\[3, 6, 8\]"),
        (lambda given, new: jax.tree.map(lambda leaf: leaf[:2], new), r"float32\[2, 6, 8\].*wanted"),
    ],
    ids=["as given", "none", "too little"],
)
def test_a_round_that_drops_what_clients_remember_is_refused(task, data, returned, message):
    algorithm = scaffold(task)

    def dropping(key, state, own, data, cohort):
        state, new, info = algorithm.round(key, state, own, data, cohort)
        return state, returned(own, new), info

    other = algorithm._replace(round=dropping)
    cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(toys.round_of(other), jax.random.key(0), toys.init(other), data, cohort)


def test_memory_without_a_beginning_is_refused(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)

    def careless(key, state, own, data, cohort):
        state, _, info = algorithm.round(key, state, own, data, cohort)
        return state, jnp.zeros(3), info

    other = algorithm._replace(round=careless)
    cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(ValueError, match="returns clients' memory, but the algorithm has no `memory`"):
        jax.eval_shape(toys.round_of(other), jax.random.key(0), toys.init(other), data, cohort)
