"""What a run cannot do right, it refuses before any training."""

import errno
import functools
import math
import multiprocessing
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.simulation import workdir as files

pytestmark = pytest.mark.usefixtures("quick_compilation")


def fed_avg(task, **settings):
    return fs.fed_avg(task, **({"client_lr": 0.1, "local_epochs": 1, "batch_size": 4} | settings))


def simulate(algorithm, data, **settings):
    settings = {"key": jax.random.key(3), "num_rounds": 2, "client_fraction": 1.0} | settings
    return fs.simulate(algorithm, data, **settings)


def reporting(algorithm, **more):
    """The algorithm, whose rounds report more."""

    def round_fn(key, state, own, data, cohort):
        state, own, info = algorithm.round(key, state, own, data, cohort)
        return state, own, info | {name: make(state, cohort) for name, make in more.items()}

    return algorithm._replace(round=round_fn)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2**22},
        {"local_epochs": 2**30, "shuffle": "never"},
        {"local_epochs": 2**31 - 1, "batch_size": 2**31 - 1},
        {"local_epochs": 2**28, "batch_size": math.inf},
    ],
    ids=str,
)
@pytest.mark.parametrize("run", [fs.simulate, fs.sweep])
def test_rounds_beyond_their_counters_are_refused(task, settings, run):
    data = toys.federation((1,) * 520)
    settings = {"simulate": {"key": jax.random.key(0)}, "sweep": {"hparams": {}}}[run.__name__] | {
        "algorithm": fed_avg(task, **settings)
    }
    with pytest.raises(ValueError, match=r"may execute .* example slots, padding included; wanted"):
        run(settings.pop("algorithm"), data, num_rounds=1, client_fraction=1.0, **settings)


def test_one_client_may_take_all_places_of_an_asynchronous_round(task):
    """Of 8 updates, all may be those of the large client, and its rounds are counted 8 times."""
    data, settings = toys.federation((1,) * 19 + (2**10,)), {"local_epochs": 2**17, "batch_size": 1}
    check = functools.partial(fs.simulation.check_sweep, data=data, hparams={}, num_rounds=1)
    check(fed_avg(task, **settings), client_fraction=0.4)
    buffered = fs.fed_buff(task, concurrency=8, buffer=8, client_lr=0.1, **settings)
    with pytest.raises(ValueError, match=r"a round of 8 clients, .* example slots, padding included"):
        check(buffered)


def test_rounds_that_their_counters_hold_are_counted(task):
    data = toys.federation((1,) * 20)
    result = simulate(fed_avg(task, batch_size=2**12), data, num_rounds=1)
    assert result.rows[-1]["slots"] == 20 * 2**12


def test_counters_of_sequential_sgd_and_learners_are_looked_at(task, data):
    with pytest.raises(ValueError, match="a round of 1048576 steps of 4096 examples is too long"):
        fs.sgd(task, client_lr=0.1, batch_size=2**12, steps_per_round=2**20)
    long = fs.sgd(task, client_lr=0.1, batch_size=1, steps_per_round=2**20)
    with pytest.raises(ValueError, match="4096 rounds of 1048576 steps are too many"):
        simulate(long, data, num_rounds=2**12)


def test_infos_are_scalars(task, data):
    ids = reporting(fed_avg(task), ids=lambda state, cohort: cohort.ids)
    with pytest.raises(
        ValueError, match=r"info holds 'ids' \(int32 of shape \(10,\)\); wanted a scalar"
    ):
        simulate(ids, data)


def test_rows_need_a_loss_and_counts_of_examples(task, data):
    algorithm = fed_avg(task)

    def silent(*arguments):
        state, own, info = algorithm.round(*arguments)
        return state, own, {name: info[name] for name in ("examples",)}

    with pytest.raises(ValueError, match="info lacks train_loss, slots; wanted"):
        simulate(algorithm._replace(round=silent), data)


@pytest.mark.parametrize("name", ["round", "seconds", "round_seconds", "bytes_up", "messages_down"])
def test_infos_and_evaluations_leave_our_columns_alone(task, data, name):
    """A round's info called "round" made the run endless."""
    taken = reporting(fed_avg(task), **{name: lambda state, cohort: state.round})
    with pytest.raises(ValueError, match=f"info holds '{name}', a column of every row"):
        simulate(taken, data)
    with pytest.raises(ValueError, match=f"an evaluation gives '{name}', a column of every row"):
        simulate(fed_avg(task), data, evaluate=lambda params: {name: 1.0})


@pytest.mark.parametrize(
    "make",
    [lambda s, c: {"a": s.round}, lambda s, c: None, lambda s, c: "x", lambda s, c: jax.random.key(0)],
    ids=["dict", "None", "text", "key"],
)
def test_infos_are_numbers(task, data, make):
    with pytest.raises(ValueError, match=r"info holds 'mine' \(.*\); wanted a scalar array"):
        simulate(reporting(fed_avg(task), mine=make), data)


@pytest.mark.parametrize("label", [-1, 3, 250])
def test_labels_beyond_the_model_are_refused_and_not_the_rate_blamed(task, label):
    """Also where the federation says of no number of classes, or of more."""
    data = toys.federation()
    labels = data.examples["y"].copy()
    labels[8] = label
    for num_classes in (None, 300):
        examples = data.examples | {"y": labels}
        wrong = fs.data.FederatedData(examples, data.offsets, num_classes=num_classes)
        with pytest.raises(ValueError, match=f"column 'y' holds {label} at row 8, row 0 of client"):
            simulate(fed_avg(task), wrong)


@pytest.mark.parametrize("value", ["5", None, [1]])
def test_counts_are_numbers(task, data, value):
    with pytest.raises(ValueError, match="wanted a whole number from 1"):
        simulate(fed_avg(task), data, num_rounds=value)


def test_a_reported_rate_stays_a_rate_and_counts_add_up(task, data):
    more = {
        "rate": lambda state, cohort: state.hparams["client_lr"],
        "round_number": lambda state, cohort: state.round.astype(jnp.float32),
        "clients": lambda state, cohort: jnp.int32(cohort.num_clients),
        "cumulative_work": lambda state, cohort: jnp.float32(0.5),
    }
    result = simulate(reporting(fed_avg(task), **more), data, num_rounds=4, eval_every=2)
    history = result.history()
    np.testing.assert_allclose(history["rate"][1:], 0.1, rtol=1e-6)
    np.testing.assert_allclose(history["round_number"][1:], [1.5, 3.5])
    np.testing.assert_array_equal(history["clients"][1:], [20, 40])
    np.testing.assert_array_equal(history["cumulative_work"][1:], [1.0, 2.0])


def test_integers_in_an_update_are_refused():
    with pytest.raises(ValueError, match="update holds uint32; wanted floats, as"):
        fs.engine.weigh({"w": jnp.ones(2), "n": jnp.uint32(3)}, jnp.float32(2.0))


def test_what_init_has_closed_over_is_read_anew(task, data):
    """A warm start in a loop, by one function that stays the same."""
    algorithm, params = fed_avg(task), task.init(jax.random.key(0))

    def init(key, hparams, num_clients):
        return algorithm.init(key, hparams, num_clients)._replace(params=params)

    warm = algorithm._replace(init=init)
    starts = []
    for _ in range(3):
        judge = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
        result = simulate(warm, data, num_rounds=1, evaluate=judge)
        starts.append(result.rows[0]["test_loss"])
        assert starts[-1] == pytest.approx(judge(params)["test_loss"])
        params = result.params
    assert len(set(starts)) == 3


def test_a_run_begins_with_the_parameters_that_it_is_given(task, data):
    judge = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    first = simulate(fed_avg(task), data, evaluate=judge)
    given = first.params
    with fs.runtime.CompilationCounter() as counter:
        second = simulate(fed_avg(task), data, evaluate=judge, initial_params=given)
        third = simulate(fed_avg(task), data, evaluate=judge, initial_params=second.params)
    assert second.rows[0]["test_loss"] == first.rows[-1]["test_loss"]
    assert third.rows[0]["test_loss"] == second.rows[-1]["test_loss"]
    assert counter.count  # each algorithm compiles its own rounds
    jax.block_until_ready(given)  # a state is donated, what was given is not
    runs = fs.sweep(
        fed_avg(task), data, hparams={}, num_rounds=1, evaluate=judge, initial_params=given
    ).runs
    assert runs[0].rows[0]["test_loss"] == pytest.approx(first.rows[-1]["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: jax.tree.leaves(params), "initial_params"),
        (lambda params: jax.tree.map(lambda w: w[..., :1], params), r"initial_params holds float32\["),
        (lambda params: jax.tree.map(lambda w: w * jnp.nan, params), "holds a NaN or an infinity"),
        (lambda params: jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), "holds bfloat16"),
    ],
)
def test_parameters_of_another_model_are_refused(task, data, change, message):
    with pytest.raises(ValueError, match=message):
        simulate(fed_avg(task), data, initial_params=change(task.init(jax.random.key(0))))


def test_parameters_for_an_algorithm_that_takes_none_are_refused(task, data):
    algorithm = fed_avg(task)
    plain = algorithm._replace(init=lambda key, hparams, n: algorithm.init(key, hparams, n))
    with pytest.raises(
        ValueError, match=r"init takes none; wanted init\(key, hparams, num_clients, params=None\)"
    ):
        simulate(plain, data, initial_params=task.init(jax.random.key(0)))
    deaf = algorithm._replace(init=lambda key, hparams, n, params=None: algorithm.init(key, hparams, n))
    for run, more in ((simulate, {}), (fs.sweep, {"hparams": {}, "num_rounds": 1})):
        with pytest.raises(ValueError, match="the algorithm's init returns has other params"):
            run(deaf, data, initial_params=task.init(jax.random.key(5)), **more)


def test_a_block_is_no_longer_than_the_run(task, data):
    """Room for 10^8 rounds took 6 GB."""
    result = simulate(fed_avg(task), data, eval_every=10**8)
    assert [row["round"] for row in result.rows] == [0, 2]


def hold(home, inside, leave):
    with files.claimed(home, {"rate": 0.1}):
        inside.set()
        leave.wait(60)


def test_of_two_that_begin_in_a_folder_one_is_refused_before_it_changes_anything(tmp_path):
    home, context = tmp_path / "run", multiprocessing.get_context("spawn")
    inside, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(home, inside, leave))
    other.start()
    try:
        assert inside.wait(60)
        with (
            pytest.raises(ValueError, match="another process is running in"),
            files.claimed(home, {"rate": 0.9}),
        ):
            pass
        assert "0.1" in (home / "config.json").read_text()
    finally:
        leave.set()
        other.join()
    with (
        pytest.raises(ValueError, match=r"rate: 0\.1 there, 0\.9 now"),
        files.claimed(home, {"rate": 0.9}),
    ):
        pass


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 400 kB, where the system lets us have one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    done = subprocess.run(mount, capture_output=True)
    if done.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_says_so(task, data, tiny_disk):
    """It was reported as a device out of memory."""
    home = tiny_disk / "run"
    with pytest.raises(OSError, match=r"the disk of .* is full: \d+ bytes are free") as full:
        simulate(fed_avg(task), data, num_rounds=300, workdir=home, checkpoint_seconds=0.0)
    assert full.value.errno == errno.ENOSPC
    assert str(home) in str(full.value)


def test_a_full_disk_is_told_wherever_it_shows(tmp_path):
    def fail(error):
        with files.full_disk_explained(tmp_path / "file"):
            raise error

    texts = [f"RESOURCE_EXHAUSTED: writing failed: {os.strerror(errno.ENOSPC)}"]
    for error in (OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), *map(ValueError, texts)):
        with pytest.raises(OSError, match=f"the disk of {tmp_path}.* bytes are free"):
            fail(error)
    for error in (OSError(errno.EACCES, "x"), ValueError("RESOURCE_EXHAUSTED: out of memory")):
        with pytest.raises(type(error)) as same:
            fail(error)
        assert same.value is error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": 0}, r"key is 0; wanted one PRNG key, such as jax.random.key\(0\)"),
        ({"key": jax.random.split(jax.random.key(0))}, r"key is key<fry>\[2\]; wanted one PRNG key"),
        ({"data": {"ann": ([0.0], [1])}}, r"data is a dict; .* fs.data.from_clients\(data\) makes one"),
        ({"data": toys.dataset(3)}, r"data is a Dataset; .* fs.data.federate\(data, partition\) makes"),
        ({"algorithm": "fed_avg"}, "algorithm is a str; wanted an fs.Algorithm"),
        ({"evaluate": 3.0}, r"evaluate holds a float; wanted functions of params, such as fs.evaluator"),
        ({"evaluate": lambda params: 0.9}, "an evaluation returned a float; wanted a dict of floats"),
    ],
)
def test_what_other_libraries_take_is_refused_with_what_to_write(task, data, change, message):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    given = {"algorithm": algorithm, "data": data, "key": jax.random.key(0), "num_rounds": 1} | change
    with pytest.raises(ValueError, match=message):
        fs.simulate(given.pop("algorithm"), given.pop("data"), **given)


def test_keys_of_either_kind_are_taken(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    assert repr(algorithm).startswith("<fed_avg: client_lr=0.1, server_lr=1.0")
    old, new = (
        fs.simulate(algorithm, data, key=key, num_rounds=1)
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    toys.assert_same(old.params, new.params)
