"""Sweeps: each run is the one of `simulate`, in both modes; divergence, races, compilations, errors."""

import dataclasses
import functools
import itertools
import json
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from test_simulate import algorithm, run, without_clock

import fedjax_sim as fs
from fedjax_sim.simulation import sweep_runner

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = (3, 4)
RATES = {"client_lr": [0.03, 0.3]}
TWO = {"server_lr": [0.5, 1.5], "lr_decay": [0.7, 1.0]}


@functools.cache  # so that tests share what is compiled; so are blocks of 3 and, stacked, 4 runs
def fed_sgd(task):
    return fs.fed_sgd(task, client_lr=0.5)


def fresh(task):
    """An algorithm that only scales the model, of which nothing is compiled yet."""

    def scale(key, state, own, data, cohort):
        params = jax.tree.map(lambda w: w * state.hparams["client_lr"], state.params)
        info = {"train_loss": jnp.ones(()), "examples": cohort.ids.size, "slots": cohort.ids.size}
        info = jax.tree.map(jnp.asarray, info) | fs.messages.exchange(cohort.ids.size)
        return state._replace(params=params), own, info

    return fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)._replace(round=scale)


def settings_of(task, settings):
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    defaults = {"num_rounds": 4, "eval_every": 3, "evaluate": evaluate, "layout": fs.Layout()}
    return defaults | settings


def sweep(task, data, *, chosen=None, **settings):
    defaults = {"hparams": RATES, "seeds": SEEDS, "client_fraction": 0.4, "stacked": False}
    return fs.sweep(chosen or algorithm(task), data, **(defaults | settings_of(task, settings)))


def simulated(task, data, one, **settings):
    """What `simulate` makes of the same hyper-parameters and seed."""
    start = {"key": jax.random.key(one.seed), "hparams": one.hparams}
    return run(task, data, **(start | settings_of(task, settings)))


def assert_same_run(one, other):
    assert without_clock(one.rows) == without_clock(other.rows)
    toys.assert_same(one.state, other.state)


def assert_close_run(one, other, slots=True):
    """Counts agree exactly, the rest but for the order of sums."""
    for row, expected in zip(*map(without_clock, (one.rows, other.rows)), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - (set() if slots else {"slots"}):
            inexact = row[name] is not None and name.endswith(("loss", "accuracy"))
            close = functools.partial(pytest.approx, rel=1e-3, abs=1e-4) if inexact else lambda v: v
            assert row[name] == close(expected[name]), name
    toys.assert_close(one.state, other.state, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("make", "grids"), [(algorithm, RATES), (algorithm, TWO), (fed_sgd, RATES)])
def test_a_run_on_a_core_is_to_the_bit_that_of_simulate(task, data, make, grids):
    chosen = make(task)
    result = sweep(task, data, chosen=chosen, hparams=grids)
    expected = [
        (dict(chosen.hparams) | dict(zip(grids, values, strict=True)), seed)
        for *values, seed in itertools.product(*grids.values(), SEEDS)
    ]
    assert [(one.hparams, one.seed) for one in result.runs] == expected
    for one in result.runs:
        assert [row["round"] for row in one.rows] == [0, 3, 4]
        assert_same_run(one, simulated(task, data, one, chosen=chosen))
        assert one.diverged is None


@pytest.mark.parametrize(
    ("make", "grids", "seeds", "where"),
    [
        (algorithm, RATES, SEEDS, (1, 1)),
        (algorithm, TWO, (3,), (1, 1)),
        pytest.param(algorithm, RATES, SEEDS, (3, 1), marks=pytest.mark.slow),
        (fed_sgd, RATES, SEEDS, (1, 2)),
    ],
)
def test_a_stacked_run_is_that_of_simulate(task, data, make, grids, seeds, where):
    """But for the order of sums; the work executed depends on the lanes."""
    chosen, layout = make(task), toys.layout(*where)
    result = sweep(task, data, chosen=chosen, hparams=grids, seeds=seeds, layout=layout, stacked=True)
    assert len(result.runs) == 4
    for one in result.runs:
        assert_close_run(one, simulated(task, data, one, chosen=chosen), slots=where == (1, 1))


@pytest.mark.parametrize("stacked", [False, True], ids=["cores", "stacked"])
@pytest.mark.parametrize("name", ["client_lr", "lr_decay"])
def test_a_run_that_diverges_is_marked_and_disturbs_no_other(task, data, stacked, name):
    """At once by its rate; within the first or the second block by a rate that grows."""
    base = {"client_lr": [0.3], "lr_decay": [1.0]}
    bad = {"client_lr": (1e30, 3e30), "lr_decay": (10.0, 1e30)}[name]
    settings = {"seeds": (4,), "num_rounds": 8, "stacked": stacked}
    result, calm = (
        sweep(task, data, hparams=base | {name: [1.0, 0.3, *more]}, **settings)
        for more in (bad, (0.8, 0.7))
    )
    for one, other in zip(result.runs[:2], calm.runs[:2], strict=True):
        assert_same_run(one, other)
    for one in result.runs[2:]:
        with pytest.raises(fs.DivergenceError) as caught:
            simulated(task, data, one, num_rounds=8)
        assert one.diverged == caught.value.round
        assert [row["round"] for row in one.rows] == list(range(0, one.diverged, 3))
    expected = {"client_lr": [1, 1], "lr_decay": [5, 2]}[name]
    assert [one.diverged for one in result.runs] == [None, None, *expected]


@pytest.mark.parametrize("cores", [1, 2, 5, 0], ids=["1", "2", "5", "stacked"])
@pytest.mark.parametrize("target", [0.25, 0.5, 0.6, 1.0])
def test_the_runs_of_a_seed_end_when_one_has_the_target(task, data, monkeypatch, cores, target):
    """Many cores, few or a stack: a winner that is slow lets others run ahead, and even diverge."""
    stacked = not cores
    monkeypatch.setattr(sweep_runner, "available_cores", lambda: cores or 2)
    # With seed 3 and the target 0.5, the growing rates diverge in the block after the end.
    grids = {"client_lr": [0.3] if stacked else [0.03, 0.1, 0.3], "lr_decay": [1.0, 30.0]}
    settings = settings_of(task, {"hparams": grids, "num_rounds": 13})

    def slow(params):
        values = settings["evaluate"](params)
        time.sleep(0.01 * (values["test_accuracy"] >= target))
        return values

    whole = sweep(task, data, **settings)
    racing = settings | {"evaluate": slow, "stop_at": target, "stacked": stacked}
    result, again = (sweep(task, data, **racing) for _ in range(2))
    ends = dict.fromkeys(SEEDS, 99)  # how many rows there are when one has the target
    for one in whole.runs:
        reached = (i + 1 for i, row in enumerate(one.rows) if row["test_accuracy"] >= target)
        ends[one.seed] = min([ends[one.seed], *reached])
    for one, repeated, unstopped in zip(result.runs, again.runs, whole.runs, strict=True):
        expected = dataclasses.replace(unstopped, rows=unstopped.rows[: ends[one.seed]])
        if unstopped.diverged is None or len(expected.rows) == ends[one.seed]:
            rounds = expected.rows[-1]["round"]
            until = {"num_rounds": rounds} if rounds else {"stop_at": 0.01}
            state = simulated(task, data, one, **until).state
            expected = dataclasses.replace(expected, state=state, diverged=None)
            (assert_close_run if stacked else assert_same_run)(one, expected)
        assert [row["round"] for row in one.rows] == [row["round"] for row in expected.rows]
        assert one.diverged == repeated.diverged == expected.diverged
        assert without_clock(one.rows) == without_clock(repeated.rows)
    rounds = sorted({one.rows[-1]["round"] for one in result.runs if one.diverged is None})
    assert rounds == {0.25: [0, 3], 0.5: [3, 6], 0.6: [6, 12], 1.0: [13]}[target]


def test_one_compilation_serves_all_runs_and_all_later_sweeps(task, data):
    sweep(task, data)  # compiles what does not belong to the algorithms that follow

    def compiled(chosen, **settings):
        with fs.runtime.CompilationCounter() as counter:
            result = sweep(task, data, chosen=chosen, **settings)
        assert result.compilations == counter.count
        return counter.count

    assert compiled(fresh(task), hparams={"client_lr": [0.1]}, seeds=(0,)) == 1  # its blocks
    # An algorithm made anew shares them.
    assert compiled(fresh(task), hparams={"client_lr": [0.1, 0.2, 0.3, 0.4]}, seeds=(5, 6)) == 0
    for stacked in (False, True):
        sweep(task, data, stop_at=0.9, stacked=stacked)
        other = {"hparams": {"server_lr": [0.5, 0.7]}, "seeds": (8, 9), "num_rounds": 7}
        assert compiled(algorithm(task), stop_at=0.8, stacked=stacked, **other) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hparams": {"client_lr": []}}, "client_lr is empty; wanted at least one value"),
        ({"hparams": {"client_lr": [0.1, "0.2"]}}, "client_lr holds '0.2'; wanted numbers"),
        ({"hparams": {"client_lr": "0.1"}}, "client_lr is '0.1'; wanted a sequence of numbers"),
        ({"hparams": {"client_lr": [0.1, True]}}, "client_lr holds True; wanted numbers"),
        ({"hparams": {"client_lr": [0.1, math.nan]}}, "client_lr is nan; wanted a finite number"),
        ({"hparams": {"client_lr": [0.1, math.inf]}}, "client_lr is inf; wanted a finite number"),
        ({"hparams": {"client_lr": [0.1, -1]}}, "client_lr is -1.0; wanted .* at least 0"),
        ({"hparams": {"client_lr": [0.1, 0.2, 0.1]}}, "client_lr holds 0.1 twice"),
        ({"hparams": {"momentum": [0.9]}}, "no hyper-parameter momentum; it has client_lr"),
        ({"seeds": ()}, "seeds is empty; wanted at least one value"),
        ({"seeds": (0, 1.0)}, "seeds holds 1.0; wanted whole numbers"),
        ({"seeds": (True,)}, "seeds holds True; wanted whole numbers"),
        ({"seeds": (0, 2**33)}, r"seeds holds 8589934592; wanted whole numbers from 0 to 2\*\*32 - 1"),
        ({"stop_at": 1.5}, "target accuracy is 1.5; wanted a share"),
        ({"stop_at": 0.9, "evaluate": ()}, "needs an evaluation"),
    ],
)
def test_bad_settings_are_refused_before_any_training(task, data, settings, message):
    def never(*arguments):
        pytest.fail("the sweep began")

    chosen = algorithm(task)._replace(init=never, round=never)
    with pytest.raises(ValueError, match=message):
        sweep(task, data, chosen=chosen, **({"evaluate": never} | settings))


@pytest.mark.parametrize("stop_at", [None, 1.0], ids=["", "race"])
def test_an_error_in_a_worker_reaches_the_caller_and_ends_the_others(task, data, monkeypatch, stop_at):
    monkeypatch.setattr(sweep_runner, "available_cores", lambda: 5)
    judge, calls = settings_of(task, {})["evaluate"], itertools.count()
    others = threading.Event()  # has the other run gone on?

    def failing(params):
        call = next(calls)
        if call == 6:
            assert threading.current_thread().name.startswith("sweep")
            others.wait(timeout=3)
            raise ArithmeticError("by the evaluation")
        if call > 6:
            others.set()
        return judge(params)

    with pytest.raises(ArithmeticError, match="by the evaluation"):
        sweep(task, data, evaluate=failing, stop_at=stop_at, seeds=(3,), num_rounds=30_000)
    assert next(calls) < 15_000  # of 60,000 rounds in blocks of 3: the others ended as well
    assert not [t for t in threading.enumerate() if t.name.startswith("sweep")]


def test_the_summary_says_what_each_run_reached(task, data):
    rates = {"client_lr": [0.03, 0.3, 1e30]}
    result = sweep(task, data, hparams=rates, num_rounds=8, stop_at=0.5)
    summary = json.loads(json.dumps(result.summary()))
    for one, told in zip(result.runs, summary, strict=True):
        history = one.history()
        curve = history["round"], history["test_accuracy"]
        assert told == one.hparams | {
            "seed": one.seed,
            "rounds": curve[0][-1],
            "rounds_to_target": fs.rounds_to_target(*curve, 0.5),
            "best_accuracy": np.max(curve[1]),
            "seconds": history["seconds"][-1],
            "diverged": one.diverged,
        }
    assert {told["seed"] for told in summary if told["rounds_to_target"] is not None} == set(SEEDS)
    assert [told["diverged"] for told in summary] == [None] * 4 + [1, 1]
    untold = sweep(task, data, evaluate=()).summary()
    assert {(t["rounds_to_target"], t["best_accuracy"]) for t in untold} == {(None, None)}


@pytest.mark.slow
def test_a_run_that_is_alone_has_all_devices(task, data):
    (one,) = sweep(task, data, hparams={"client_lr": [0.1]}, seeds=[3], layout=None).runs
    assert_same_run(one, simulated(task, data, one, layout=fs.runtime.default_layout()))


def test_grids_may_be_arrays(task, data):
    result = sweep(task, data, hparams={"client_lr": np.float64([0.03, 0.3])}, seeds=np.arange(2))
    listed = sweep(task, data, hparams={"client_lr": [0.03, 0.3]}, seeds=[0, 1])
    assert [without_clock(a.rows) for a in result.runs] == [without_clock(b.rows) for b in listed.runs]
    assert [told["seed"] for told in json.loads(json.dumps(result.summary()))] == [0, 1, 0, 1]


def test_the_clock_of_stacked_runs_shares_out_each_block_once(task, data):
    result = sweep(task, data, stacked=True)
    assert sum(run.rows[-1]["seconds"] for run in result.runs) <= result.seconds
    for row in range(1, 3):
        assert len({run.rows[row]["round_seconds"] for run in result.runs}) == 1
