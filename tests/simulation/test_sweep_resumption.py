"""Sweeps with a workdir: interrupted ones end to the bit as if they had not been."""

import importlib

import pytest
import toys
from test_resumption import KilledError, killed_after
from test_simulate import without_clock
from test_sweep import SEEDS, sweep

import fedjax_sim as fs
from fedjax_sim.simulation import sweep_runner

SWEEP = importlib.import_module("fedjax_sim.simulation.sweep")

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The rates that grow diverge in the second block; with seed 3 a race that is over by then.
GROWING = {"hparams": {"client_lr": [0.3], "lr_decay": [1.0, 30.0]}}
PLAIN = GROWING | {"num_rounds": 8}
RACE = GROWING | {"num_rounds": 13, "stop_at": 0.6}
NAMES = [f"client_lr=0.3,server_lr=1.0,lr_decay={d},seed={s}" for d in (1.0, 30.0) for s in SEEDS]


def blocks(count):
    """Says that so many blocks may be begun."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def in_parts(task, data, each, **settings):
    """The result of a sweep that is repeated until it is finished, and how often it was not."""
    for parts in range(99):
        try:
            return sweep(task, data, go_on=blocks(each), **settings), parts
        except fs.simulation.UnfinishedError:
            continue
    raise AssertionError("it never ends")


def assert_same_sweep(one, other):
    for a, b in zip(one.runs, other.runs, strict=True):
        assert (a.hparams, a.seed, a.diverged) == (b.hparams, b.seed, b.diverged)
        assert without_clock(a.rows) == without_clock(b.rows)
        toys.assert_same(a.state, b.state)


@pytest.mark.parametrize(
    ("cores", "settings", "each"),
    [
        (1, PLAIN, 6),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((5, RACE, 5), (0, PLAIN, 2), (0, RACE, 2))
        ),
    ],
    ids=["cores", "cores-race", "stacked", "stacked-race"],
)
def test_a_sweep_told_not_to_go_on_continues_where_it_was(
    task, data, tmp_path, monkeypatch, cores, settings, each
):
    monkeypatch.setattr(sweep_runner, "available_cores", lambda: cores or 2)
    settings = settings | {"stacked": not cores}
    whole = sweep(task, data, **settings)
    assert {one.diverged is None for one in whole.runs} == {True, False}
    settings["workdir"] = tmp_path / "sweep"
    resumed, parts = in_parts(task, data, each, **settings)
    assert parts > 1
    assert_same_sweep(resumed, whole)
    # A plain function judges the first model of each run again, so that another one is noticed.
    judged = killed_after(task, len(whole.runs))
    again = sweep(task, data, evaluate=judged, go_on=blocks(0), **settings)
    assert_same_sweep(again, whole)
    assert [one.rows for one in again.runs] == [one.rows for one in resumed.runs]


@pytest.mark.parametrize("cores", [5, 0], ids=["cores", "stacked"])
@pytest.mark.parametrize("seconds", [pytest.param(0.0, marks=pytest.mark.slow), 1000.0])
def test_a_killed_sweep_ends_to_the_bit_as_one_that_was_not(
    task, data, tmp_path, monkeypatch, cores, seconds
):
    """Also where some runs were saved after a block, and the others not."""
    monkeypatch.setattr(sweep_runner, "available_cores", lambda: cores or 2)
    monkeypatch.setattr(SWEEP, "_CHECKPOINT_SECONDS", seconds)
    settings = RACE | {"stacked": not cores}
    whole = sweep(task, data, **settings)
    settings["workdir"] = tmp_path / "sweep"
    for evaluations in (2, 5):
        with pytest.raises(KilledError):
            sweep(task, data, evaluate=killed_after(task, evaluations), **settings)
    resumed = sweep(task, data, **settings)
    assert_same_sweep(resumed, whole)
    for one in resumed.runs:
        clock = [row["seconds"] for row in one.rows]
        assert clock == sorted(clock)


def test_a_sweep_that_may_not_begin_trains_nothing_and_keeps_its_settings(task, data, tmp_path):
    home = tmp_path / "sweep"
    with pytest.raises(fs.simulation.UnfinishedError, match="0 of at most 32 rounds are done; repeat"):
        sweep(task, data, workdir=home, go_on=blocks(0), evaluate=killed_after(task, 0), **PLAIN)
    assert sorted(path.name for path in home.iterdir() if path.is_dir()) == sorted(NAMES)
    for change, message in (
        ({"seeds": (3, 5)}, "runs: "),
        ({"eval_every": 4}, "eval_every: 3 there, 4 now"),
        ({"stop_at": 0.9}, "target_accuracy: None there, 0.9 now"),
        (
            {"chosen": fs.fed_avg(task, client_lr=0.3, local_epochs=2, batch_size=4)},
            "local_epochs: 1 there, 2 now",
        ),
    ):
        with pytest.raises(ValueError, match=f"belongs to a run of another configuration:\n  {message}"):
            sweep(task, data, workdir=home, **(PLAIN | change))
    with pytest.raises(ValueError, match="go_on is given without workdir"):
        sweep(task, data, go_on=blocks(0), **PLAIN)
