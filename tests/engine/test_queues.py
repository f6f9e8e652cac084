"""Lanes that pass from client to client: everybody once, and little idling.

That lanes change no result is in `test_identities.py`.
"""

import functools

import data_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.engine import queues
from fedjax_sim.engine.queues import plan_queues, widths_of
from fedjax_sim.engine.work import ClientWork, SteppedWork
from fedjax_sim.participation.uniform import sample_cohort

pytestmark = pytest.mark.usefixtures("quick_compilation")

plan = jax.jit(plan_queues, static_argnums=(1, 2, 3))


COUNTS = {
    "even": lambda rng, size: np.full(size, 7),
    "ragged": lambda rng, size: rng.integers(1, 100, size),
    "heavy-tailed": lambda rng, size: np.ceil(10 * rng.lognormal(sigma=2, size=size)).astype(int),
    "one of all": lambda rng, size: np.array([1000] + [1] * (size - 1)),
}


def halving(lanes, devices):
    """The other arguments of `plan` on CPUs."""
    widths, busy = widths_of(lanes, lanes, "cpu")
    return widths, devices, busy


def executed(loads, widths):
    """Lane steps of one device's lanes, as the engine walks them."""
    steps = time = 0
    for width, narrower in zip(widths, (*widths[1:], 0), strict=True):
        steps += width * (loads[narrower] - time)
        time = loads[narrower]
    return steps


@pytest.mark.parametrize(("lanes", "widths"), [(1, (1,)), (2, (2, 1)), (5, (5, 3, 2, 1))])
def test_widths_of_a_cpu_halve(lanes, widths):
    assert widths_of(lanes, lanes, "cpu")[0] == widths
    assert widths_of(64, 64, "cpu")[0] == (64, 32, 16, 8, 4, 2, 1)


@pytest.mark.parametrize(
    ("lanes", "clients", "widths"),
    [(1, 1, (1,)), (16, 100, (15,)), (17, 17, (17, 16)), (64, 100, (50, 16)), (256, 512, (256, 64, 16))],
)
def test_widths_of_an_accelerator_are_few(lanes, clients, widths):
    assert widths_of(lanes, clients, "gpu")[0] == widths


@pytest.mark.parametrize(
    ("size", "lanes", "devices"), [(1, 1, 2), (10, 10, 1), (100, 16, 1), (40, 5, 2), (7, 4, 3)]
)
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_every_client_stands_in_one_queue_and_few_lanes_idle(backend, name, size, lanes, devices):
    widths, busy = widths_of(lanes, -(-size // devices), backend)
    for seed in range(5):
        count = COUNTS[name](np.random.default_rng(seed), size)
        clients, first, loads = jax.tree.map(
            np.asarray, plan(jnp.asarray(count, jnp.int32), widths, devices, busy)
        )
        np.testing.assert_array_equal(np.sort(clients), np.arange(size))
        assert first[0] == 0
        assert first[-1] == size
        for lane, load in enumerate(loads):
            assert count[clients[first[lane] : first[lane + 1]]].sum() == load
        assert (np.diff(loads) <= 0).all()
        steps = sum(executed(loads[d::devices], widths) for d in range(devices))
        idle = 0.025 * count.sum() if backend == "cpu" else lanes * devices * count.max()
        assert count.sum() <= steps <= count.sum() + idle


def test_equal_clients_fill_all_lanes():
    loads = plan(jnp.full(64, 3, jnp.int32), *halving(16, 2)).loads
    np.testing.assert_array_equal(loads, np.full(32, 6))


def test_a_client_with_most_of_the_data_does_not_keep_the_lanes_from_the_others():
    loads = plan(jnp.array([100, *[10] * 8], jnp.int32), *halving(8, 1)).loads
    assert loads[0] == 100  # nothing ends sooner


def test_lanes_that_may_idle_end_a_round_sooner():
    count, widths = jnp.array([20, *[10] * 99], jnp.int32), (64, 16)
    assert plan(count, widths, 1, None).loads[0] == 20
    assert plan(count, widths, 1, 40).loads[0] > 20


@pytest.mark.slow
def test_the_widths_of_an_accelerator_change_no_result(task, data, monkeypatch):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=1)
    state, info = toys.play(algorithm, data, where=toys.layout(lanes=3))
    monkeypatch.setattr(queues, "_NARROW", 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    again = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=1)
    other, info_there = toys.play(again, data, where=toys.layout(lanes=3))
    toys.assert_close(state.params, other.params)
    assert int(info["examples"]) == int(info_there["examples"])


@pytest.mark.parametrize(("lanes", "devices"), [(2, 1), (5, 1), (4, 2)])
def test_each_client_takes_its_own_steps_in_order_and_lanes_as_many_as_planned(lanes, devices):
    """A lane counts from zero for each of its clients, and idles no longer than the plan says."""

    def step(i, carry, client, rate):
        taken, in_order, key = carry
        return taken + 1, in_order & (i == taken), key

    steps = SteppedWork(
        begin=lambda params, client, key, rate: (jnp.zeros((), jnp.int32), jnp.asarray(True), key),
        step=step,
        end=lambda carry: carry,
        count=lambda sizes, keys: 3 * sizes,
        width=4,
    )

    def leave(shared, own_k, client, trained, leave_key):
        taken, in_order, key = trained
        own_key = jax.random.fold_in(jax.random.key(1), client.id)
        right = in_order & (taken == 3 * client.size) & jnp.all(key == own_key)
        return fs.ClientOutput(jnp.ones(()), {"taken": taken, "right": right.astype(jnp.int32)})

    data, where = toys.federation((9, 0, 4, 17, 1, 0, 6, 12, 3, 2, 8, 5)), toys.layout(lanes, devices)
    ids = np.array([11, 3, 1, 0, 5, 8, 2, 10, 7, 6])

    @jax.jit
    def run(data, cohort):
        work = ClientWork(None, lambda sizes, keys: sizes[:, None], steps)
        key = jax.random.key(1)
        shared = (jnp.zeros(()), jnp.ones(()))
        return fs.train_clients(work, shared, data, cohort, key=key, leave=leave)

    cohort = fs.Cohort(jnp.asarray(ids, jnp.int32), where)
    sums = run(*fs.engine.place((jax.tree.map(jnp.asarray, data), cohort), where))
    sizes = np.asarray(data.sizes)[ids]
    assert int(sums.metrics["right"]) == float(sums.message) == len(ids)
    assert int(sums.metrics["taken"]) == 3 * sizes.sum()
    widths, _ = widths_of(lanes, lanes, "cpu")
    # 5 lanes take 51, 36, 36, 36 and 35 steps, so that 3 outlast the others.
    loads = np.asarray(plan(jnp.maximum(3 * sizes, 1), *halving(lanes, devices)).loads)
    assert int(sums.slots) == 4 * sum(executed(loads[d::devices], widths) for d in range(devices))


def test_an_empty_client_sends_and_changes_nothing(task):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    data = toys.federation((0, 5, 0, 3))
    state, info = toys.play(algorithm, data, where=toys.layout(lanes=3))
    without, _ = toys.play(algorithm, data, ids=[1, 3], where=toys.layout(lanes=3))
    toys.assert_close(state.params, without.params)
    assert int(info["examples"]) == 8
    nobody, info = toys.play(algorithm, data, ids=[0, 2], where=toys.layout(lanes=2))
    toys.assert_same(nobody.params, toys.init(algorithm).params)
    assert int(info["examples"]) == 0


def test_slots_are_counted_as_they_are_executed(task):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    # Steps 5, 1, 1, 1, 1, 1: two lanes, of 5 steps each.
    _, info = toys.play(algorithm, toys.federation((20, 4, 4, 4, 3, 1)), where=toys.layout(lanes=4))
    assert int(info["slots"]) == 2 * 5 * 4


def test_other_cohorts_and_rates_compile_nothing(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4, shuffle="never")
    round_fn, where = toys.round_of(algorithm), toys.layout(lanes=3)
    for seed, ids in enumerate([(0, 3, 5, 8), (1, 2, 4, 6), (9, 7, 5, 3)]):
        state = toys.init(algorithm, client_lr=0.1 * (1 + seed))
        cohort = fs.Cohort(jnp.array(ids, jnp.int32), where)
        round_fn(jax.random.key(seed), state, data.place(jax.local_devices()[0]), cohort)
    assert round_fn._cache_size() == 1


@data_files.needs("shakespeare/pg100.txt.gz")
@pytest.mark.parametrize(
    ("cohort_size", "epochs", "lanes"),
    [(100, 1, 1), pytest.param(10, 5, 16, marks=pytest.mark.slow)],
)
def test_padding_of_shakespeare_s_roles_stays_below_a_tenth(cohort_size, epochs, lanes):
    text, _ = fs.data.load("shakespeare", data_dir=data_files.data_root() / "shakespeare")
    roles = fs.data.federate(text, fs.data.natural("role"))
    data = toys.federation(roles.sizes)  # as many rows, which are quicker to learn from
    algorithm = fs.fed_avg(
        toys.task(), client_lr=0.1, local_epochs=epochs, batch_size=10, shuffle="never"
    )
    where, slots, examples = toys.layout(lanes, devices=2), 0, 0
    round_fn = toys.round_of(algorithm)
    state, data = fs.engine.place((toys.init(algorithm), data), where)
    for seed in range(20):
        key, cohort = fs.engine.place(
            (
                jax.random.key(seed),
                fs.Cohort(sample_cohort(jax.random.key(seed), data.num_clients, cohort_size), where),
            ),
            where,
        )
        _, info = round_fn(key, state, data, cohort)
        slots, examples = slots + int(info["slots"]), examples + int(info["examples"])
    assert slots / examples - 1 <= 0.1


@pytest.mark.slow
def test_who_has_no_data_sends_what_it_received(task):
    def decaying(rate):
        return optax.chain(optax.add_decayed_weights(0.5), optax.sgd(rate))

    def leave(shared, own_k, client, trained, key):
        w_k, losses = trained
        return fs.ClientOutput(w_k, losses)

    work = fs.local_training(task, decaying, local_epochs=1, batch_size=4, shuffle="never")
    data, params = toys.federation((0, 5, 0)), task.init(jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def sums(lanes):
        cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32), toys.layout(lanes))
        rate = jnp.float32(0.1)
        key = jax.random.key(1)
        return fs.train_clients(work, (params, rate), data, cohort, key=key, leave=leave)

    alone, together = sums(1), sums(3)
    toys.assert_close(together.message, alone.message)


@pytest.mark.parametrize("lanes", [1, 2])
def test_where_clients_start_is_a_pair(task, data, lanes):
    params = task.init(jax.random.key(0))
    work = fs.local_training(task, optax.sgd, local_epochs=1, batch_size=4)
    cohort = fs.Cohort(jnp.arange(3, dtype=jnp.int32), fs.Layout(lanes))

    def leave(shared, own_k, client, trained, key):
        return fs.ClientOutput(trained[0], trained[1])

    def run(shared, **more):
        return jax.eval_shape(
            lambda: fs.train_clients(
                work, shared, data, cohort, key=jax.random.key(0), leave=leave, **more
            )
        )

    run((params, 0.1, "more"))
    with pytest.raises(ValueError, match=r"without `enter`, `shared` is PyTreeDef.*wanted a tuple"):
        run(params)
    with pytest.raises(ValueError, match="what `enter` returns is PyTreeDef"):
        run((params, 0.1), enter=lambda shared, own_k, client, key: shared[0])
