"""Data on the host: the same runs to the bit, few compilations, errors that arrive, no thread left."""

import math
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_resumption import KilledError, killed_after
from test_simulate import algorithm, run, without_clock

import fedjax_sim as fs
from fedjax_sim.participation.uniform import sample_cohort
from fedjax_sim.simulation.host_rounds import CohortPrefetcher, stays_on_host

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Total(NamedTuple):
    params: Any
    hparams: Any


def adding():
    """An algorithm that compiles at once: it adds up the rows of its cohorts."""

    def client(nothing, own_k, client, key):
        def add(i, total):
            return total + client.take(i[None])["x"].sum()

        total = jax.lax.fori_loop(0, client.size, add, jnp.zeros(()))
        return fs.ClientOutput(total, {"examples": client.size})

    def work(sizes, keys):
        return sizes[:, None]

    def round_fn(key, state, own, data, cohort):
        sums = fs.engine.map_clients(client, (), data, cohort, key=key, work=work)
        info = {"train_loss": sums.message, "slots": sums.slots} | sums.metrics
        return state._replace(params=state.params + sums.message), own, info

    def init(key, hparams, num_clients):
        return Total(jnp.zeros(()), dict(hparams))

    return fs.Algorithm(init, round_fn, lambda state: {}, {"scale": 1.0}, {})


def fed_sgd(task):
    return fs.fed_sgd(task, client_lr=1.0)


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        (2, "fed_avg"),
        pytest.param(1, "fed_avg", marks=pytest.mark.slow),
        *(pytest.param(n, "fed_sgd", marks=pytest.mark.slow) for n in (1, 2)),
    ],
)
def test_a_run_is_the_same_to_the_bit(task, data, name, devices):
    chosen = {"fed_avg": algorithm, "fed_sgd": fed_sgd}[name](task)
    settings = {"chosen": chosen, "layout": toys.layout(devices=devices), "eval_every": 4}
    on_device, on_host = (run(task, data, data_placement=p, **settings) for p in ("device", "host"))
    toys.assert_same(on_host.state, on_device.state)
    assert without_clock(on_host.rows) == without_clock(on_device.rows)
    assert [row.keys() for row in on_host.rows] == [row.keys() for row in on_device.rows]


def test_everybody_in_every_round_is_the_same_to_the_bit(data):
    settings = {"client_fraction": 1.0, "num_rounds": 20, "key": jax.random.key(0)}
    layout = toys.layout(2)
    on_device, on_host = (
        fs.simulate(adding(), data, data_placement=placement, layout=layout, eval_every=20, **settings)
        for placement in ("device", "host")
    )
    toys.assert_same(on_host.params, on_device.params)


@pytest.mark.slow
def test_a_run_resumes_under_another_placement_to_the_bit(task, data, tmp_path):
    whole = run(task, data, data_placement="device", eval_every=4)
    settings = {"workdir": tmp_path / "run", "checkpoint_seconds": 0.0, "eval_every": 4}
    for placement, evaluations in (("host", 1), ("device", 1), ("host", 0)):
        stop = killed_after(task, evaluations)
        with pytest.raises(KilledError):
            run(task, data, evaluate=stop, data_placement=placement, **settings)
    resumed = run(task, data, data_placement="host", **settings)
    toys.assert_same(resumed.params, whole.params)
    assert without_clock(resumed.rows) == without_clock(whole.rows)


def test_data_in_files_gives_the_same_run(task, data, tmp_path):
    fs.data.save_federated(data, tmp_path / "data")
    stored = fs.data.open_federated(tmp_path / "data")
    workdir = tmp_path / "run"  # the run of one is the run of the other
    with pytest.raises(KilledError):
        run(task, data, evaluate=killed_after(task, 2), workdir=workdir, eval_every=4)
    resumed = run(task, stored, workdir=workdir, eval_every=4)
    assert resumed.gather_seconds > 0
    for again in (data, stored):
        on_device = run(task, again, data_placement="device", eval_every=4)
        toys.assert_same(resumed.params, on_device.params)


def test_the_target_ends_the_run(task, data):
    longest = run(task, data, num_rounds=30, data_placement="host")
    target = max(row["test_accuracy"] for row in longest.rows)
    stopped = run(task, data, num_rounds=30, stop_at=target, data_placement="host")
    assert stopped.rows[-1]["test_accuracy"] == target
    assert without_clock(stopped.rows) == without_clock(longest.rows[: len(stopped.rows)])


def test_divergence_is_found(task, data):
    with pytest.raises(fs.DivergenceError, match=r"in round 1: .*client_lr=1e\+20"):
        run(task, data, hparams={"client_lr": 1e20}, data_placement="host", eval_every=4)


def test_cohorts_of_many_sizes_share_few_programs():
    """Each power of two of rows is one program, and the next run has none to compile."""
    sizes = np.rint(np.geomspace(1, 4_000, 60)).astype(int)
    data, chosen = toys.federation(sizes), adding()

    def compilations(num_rounds, seed=0):
        settings = {"client_fraction": 0.05, "num_rounds": num_rounds, "eval_every": 10}
        key, layout = jax.random.key(seed), toys.layout()
        result = fs.simulate(chosen, data, key=key, layout=layout, data_placement="host", **settings)
        return result.compilations, result.rows[-1]["examples"]

    first, _ = compilations(num_rounds=1)
    more, examples = compilations(num_rounds=40)
    assert first <= 5  # of keys, of the start, of the draws, of one shape
    smallest = 2 ** math.ceil(math.log2(1.25 * sizes.mean() * 3))
    assert 1 <= more <= math.log2(sizes[-3:].sum() / smallest) + 1
    assert examples > 40 * smallest / 4  # so there were cohorts of all sizes
    assert compilations(num_rounds=40)[0] == 0


def test_the_feed_brings_the_cohorts_that_a_round_would_draw(data):
    key = jax.random.key(5)
    with CohortPrefetcher(data, key, toys.draws(data, 4), toys.layout(), num_rounds=40) as feed:
        for r in (17, 18, 33):
            fed = feed.cohort(r)
            expected = np.asarray(sample_cohort(jax.random.fold_in(key, r), data.num_clients, 4))
            np.testing.assert_array_equal(fed.drawn.cohort.ids, expected)
            cohort = data.select(expected)
            rows = int(cohort.offsets[-1])
            np.testing.assert_array_equal(fed.data.offsets, cohort.offsets)
            np.testing.assert_array_equal(fed.data.examples["x"][:rows], cohort.examples["x"])
            assert len(fed.data.examples["x"]).bit_count() == 1
    assert feed.gather_seconds > 0
    assert feed.waited_seconds > 0


def test_a_shape_is_new_once_and_has_no_more_rows_than_there_are(data):
    with CohortPrefetcher(
        data, jax.random.key(5), toys.draws(data, data.num_clients), toys.layout(), num_rounds=3
    ) as feed:
        brought = [feed.cohort(r) for r in range(3)]
    assert [fed.new_shape for fed in brought] == [True, False, False]  # compiled off the clock
    assert {len(fed.data.examples["x"]) for fed in brought} == {sum(toys.SIZES)}


def test_nobody_is_gathered_for_a_round_after_the_last(data, monkeypatch):
    gathered, select = [], fs.data.FederatedData.select

    def count(self, clients, num_rows):
        gathered.append(clients)
        return select(self, clients, num_rows)

    monkeypatch.setattr(fs.data.FederatedData, "select", count)
    with CohortPrefetcher(
        data, jax.random.key(5), toys.draws(data, 4), toys.layout(), num_rounds=2
    ) as feed:
        feed.cohort(0)
        feed.cohort(1)
        feed._pool.submit(int).result()  # after whatever else was asked for
    assert len(gathered) == 2


def test_what_was_gathered_and_what_was_waited_for_is_told(task, data):
    summary = run(task, data, data_placement="host", eval_every=4).summary()
    assert summary["gather_seconds"] > 0
    assert summary["waited_seconds"] > 0
    summary = run(task, data, data_placement="device", eval_every=4).summary()
    assert (summary["gather_seconds"], summary["waited_seconds"]) == (0, 0)


def test_a_file_that_shrinks_during_a_run_ends_it_with_an_error(task, data, tmp_path):
    fs.data.save_federated(data, tmp_path)
    stored = fs.data.open_federated(tmp_path)
    path = tmp_path / "column_x.npy"
    size = path.stat().st_size
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())

    def shrink(params):
        with path.open("r+b") as file:
            file.truncate(200)
        return evaluate(params)

    message = f"column_x.npy shrank while it was in use: it has 200 bytes, wanted {size}; restore"
    with pytest.raises(ValueError, match=message):
        run(task, stored, evaluate=shrink)
    for placement in ("device", "host"):  # before any training
        with pytest.raises(ValueError, match=message):
            run(task, stored, data_placement=placement, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_errors_of_the_thread_reach_the_user(task, data, monkeypatch):
    def select(self, clients, num_rows):
        raise OSError("the disk is gone")

    monkeypatch.setattr(fs.data.FederatedData, "select", select)
    with pytest.raises(OSError, match="the disk is gone"):
        run(task, data, data_placement="host")


def test_pooled_data_cannot_stay_on_the_host(task, data):
    sgd = fs.sgd(task, batch_size=4, client_lr=0.1)
    with pytest.raises(
        ValueError, match="reads the data of all clients in every round; wanted 'device'"
    ):
        run(task, data, chosen=sgd, data_placement="host")
    with pytest.raises(ValueError, match="unknown data_placement 'hots'; did you mean 'host'"):
        run(task, data, data_placement="hots")


class Device:
    """An accelerator with so many bytes."""

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit}


def test_auto_looks_at_files_and_at_the_devices_memory(task, data, tmp_path, monkeypatch):
    fs.data.save_federated(data, tmp_path)
    stored = fs.data.open_federated(tmp_path)
    chosen, sgd = algorithm(task), fs.sgd(task, client_lr=1.0, batch_size=4)

    def auto(data, algorithm=chosen):
        return stays_on_host("auto", algorithm, data, fs.Layout(), algorithm.hparams)

    assert not auto(data)  # a CPU does not tell its memory
    assert auto(stored)
    assert not auto(stored, sgd)
    size = data.offsets.nbytes + sum(column.nbytes for column in data.examples.values())
    for limit, on_host in ((2 * size, False), (2 * size - 2, True)):
        monkeypatch.setattr(jax, "local_devices", lambda limit=limit: [Device(limit)])
        assert auto(data) == on_host
        assert not auto(data, sgd)
        assert not auto(fs.engine.place(data, fs.Layout()))  # it is there already
