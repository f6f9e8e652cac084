"""Callbacks: what they see, how they end a run, and that interrupted runs end like others."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import toys
from test_resumption import KilledError, killed_after, rows_of
from test_simulate import run, without_clock
from test_sweep import sweep

from fedjax_sim.simulation import Callback, EarlyStopping, KeepBest, of_view
from fedjax_sim.simulation.callbacks import Callbacks

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Watching(Callback):
    """Remembers what it sees, and ends the run after a round."""

    def __init__(self, end=None, log=None):
        self.end, self.log = end, [] if log is None else log

    def on_start(self, view, rows, workdir):
        self.log.append(("start", view.round, len(rows), workdir))

    def on_evaluation(self, view, row):
        self.log.append((view.round, row, jax.tree.map(np.array, view.params)))
        return view.round == self.end

    def on_end(self):
        self.log.append("end")


class Plain:
    """Has the one method that is needed."""

    def on_evaluation(self, view, row):
        row["test_accuracy"] = "mine"  # which changes no other's row


def peak(rows, name="test_accuracy", sign=1):
    """The row of the best value, the first of several."""
    return max(rows, key=lambda row: sign * row[name])


def test_callbacks_see_each_row_and_its_model_in_order(task, data):
    log = []
    two = [Plain(), Watching(log=log), Watching(log=log)]
    result = run(task, data, num_rounds=3, callbacks=two)
    assert log[:2] == [("start", 0, 0, None)] * 2
    assert log[-2:] == ["end"] * 2
    seen = log[2:-2]
    assert [round for round, *_ in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [row for _, row, _ in seen[::2]] == [row for _, row, _ in seen[1::2]] == result.rows
    toys.assert_same(seen[-1][2], jax.device_get(result.params))
    assert result.ended_by == "num_rounds"


def test_a_callback_ends_a_run_with_its_row_after_all_have_seen_it(task, data, tmp_path):
    later = Watching()
    result = run(task, data, callbacks=[Watching(end=2), later], workdir=tmp_path)
    assert result.ended_by == "callback"
    assert [entry[0] for entry in later.log[1:-1]] == [0, 1, 2]
    whole = run(task, data, num_rounds=2)
    toys.assert_same(result.params, whole.params)
    assert without_clock(rows_of(tmp_path)) == without_clock(whole.rows)
    assert (tmp_path / "checkpoints" / "2").is_dir()
    # A run whose last round is also its last by a callback is over, and not to be extended.
    assert run(task, data, num_rounds=2, callbacks=[Watching(end=2)]).ended_by == "callback"


def test_callbacks_end_with_a_run_that_fails(task, data):
    watching = Watching()
    with pytest.raises(KilledError):
        run(task, data, callbacks=[watching], evaluate=killed_after(task, 2))
    assert watching.log[-1] == "end"
    assert len(watching.log) == 4


def test_early_stopping_waits_for_its_patience():
    stop = EarlyStopping("loss", patience=2, mode="min")
    losses = [None, 3.0, 2.0, 2.0, 1.0, 1.5, 1.0, 0.5]
    ends = [stop.on_evaluation(None, {"round": r, "loss": loss}) for r, loss in enumerate(losses)]
    assert ends == [False] * 6 + [True, False]


@pytest.mark.parametrize(
    ("metric", "mode", "sign"), [("test_accuracy", "max", 1), ("test_loss", "min", -1)]
)
def test_the_best_model_is_kept(task, data, metric, mode, sign):
    best, watching = KeepBest(metric, mode=mode), Watching()
    result = run(task, data, callbacks=[best, watching])
    expected = peak(result.rows, metric, sign)
    assert (best.round, best.value) == (expected["round"], expected[metric])
    models = {entry[0]: entry[2] for entry in watching.log[1:-1]}
    toys.assert_same(best.params, models[best.round])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(best.params))
    run(task, data, num_rounds=1, callbacks=[best])  # begins anew
    assert best.round <= 1


@pytest.mark.parametrize("seconds", [pytest.param(0.0, marks=pytest.mark.slow), 1000.0])
def test_an_interrupted_run_keeps_the_same_best_and_stops_at_the_same_round(
    task, data, tmp_path, seconds
):
    def callbacks():
        return [EarlyStopping(patience=2), KeepBest()]

    settings = {"num_rounds": 20, "checkpoint_seconds": seconds}
    whole_callbacks = callbacks()
    whole = run(task, data, callbacks=whole_callbacks, **settings)
    assert whole.ended_by == "callback"
    assert 3 <= whole.rows[-1]["round"] < 20
    for evaluations in (1, 3, 4):  # of which two judge the first and the last model again
        evaluate = killed_after(task, evaluations)
        with pytest.raises(KilledError):
            run(task, data, callbacks=callbacks(), evaluate=evaluate, workdir=tmp_path, **settings)
    for _ in range(2):  # the second time the run is over already
        resumed_callbacks = callbacks()
        resumed = run(task, data, callbacks=resumed_callbacks, workdir=tmp_path, **settings)
        assert without_clock(resumed.rows) == without_clock(whole.rows)
        toys.assert_same(resumed.params, whole.params)
        toys.assert_same(resumed_callbacks[1].params, whole_callbacks[1].params)
        assert resumed_callbacks[1].round == whole_callbacks[1].round
        assert resumed.ended_by == "callback"


def test_a_run_that_was_killed_ahead_of_its_checkpoint_may_end_before(task, data, tmp_path):
    """The best model of a round that is taken back does not stand for that of an earlier one."""
    scores = (1.0, 3.0, 2.0, 0.0, 5.0)

    @of_view
    def score(view):
        if view.round == len(scores):
            raise KilledError
        return {"score": scores[view.round]}

    watching = Watching()
    run(task, data, num_rounds=4, callbacks=[watching])
    models = {entry[0]: entry[2] for entry in watching.log[1:-1]}
    settings = {"workdir": tmp_path, "checkpoint_seconds": 1000.0, "evaluate": score}
    with pytest.raises(KilledError):
        run(task, data, num_rounds=6, callbacks=[KeepBest("score")], **settings)
    for num_rounds, expected in ((1, 1), (2, 1), (3, 1), (4, 4)):
        best = KeepBest("score")
        run(task, data, num_rounds=num_rounds, callbacks=[best], **settings)
        assert (best.round, best.value) == (expected, scores[expected])
        toys.assert_same(best.params, models[expected])


def test_models_that_no_checkpoint_needs_are_removed(task, data, tmp_path):
    best = KeepBest("round")  # every model is the best so far
    run(task, data, num_rounds=6, callbacks=[best], workdir=tmp_path, checkpoint_seconds=0.0)
    assert sorted(path.stem for path in (tmp_path / "best").iterdir()) == ["3", "4", "5", "6"]
    assert best.round == 6


def damaged(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, damaged])
def test_a_best_model_that_is_not_there_is_refused(task, data, tmp_path, damage):
    best = KeepBest()
    run(task, data, num_rounds=2, callbacks=[best], workdir=tmp_path)
    damage(tmp_path / "best" / f"{best.round}.npz")
    before = rows_of(tmp_path)
    with pytest.raises(ValueError, match=r"the best model so far cannot be read from .*\.npz"):
        run(task, data, num_rounds=4, callbacks=[KeepBest()], workdir=tmp_path)
    assert rows_of(tmp_path) == before


def test_less_patience_than_before_is_refused(task, data, tmp_path):
    settings = {"workdir": tmp_path, "num_rounds": 20}
    patient = run(task, data, callbacks=[EarlyStopping(patience=3)], **settings)
    longer = run(task, data, callbacks=[EarlyStopping(patience=6)], **settings)
    assert longer.rows[: len(patient.rows)] == patient.rows
    assert len(longer.rows) > len(patient.rows)
    with pytest.raises(ValueError, match="patience=1 on 'test_accuracy' would have ended"):
        run(task, data, callbacks=[EarlyStopping(patience=1)], **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Callbacks(KeepBest()), "wanted a sequence of callbacks"),
        (lambda: Callbacks([print]), "wanted objects with on_evaluation"),
        (lambda: Callbacks([KeepBest]), "wanted objects with on_evaluation"),
        (lambda: EarlyStopping(patience=0), "patience is 0; wanted a whole number"),
        (lambda: EarlyStopping(patience=1, mode="best"), "mode is 'best'; wanted 'max' or 'min'"),
        (lambda: EarlyStopping("f1", patience=1).on_evaluation(None, {"round": 0}), "the metric 'f1'"),
        (lambda: KeepBest("f1").on_evaluation(None, {"f1": [0.5, None]}), "'f1' is an array"),
    ],
)
def test_bad_callbacks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs_of_a_sweep_have_callbacks_of_their_own(task, data, tmp_path, stacked):
    made = {}

    def callbacks(hparams, seed):
        made[hparams["client_lr"], seed] = [EarlyStopping(patience=1), KeepBest()]
        return made[hparams["client_lr"], seed]

    settings = {"num_rounds": 9, "eval_every": 1, "stacked": stacked, "workdir": tmp_path}
    result = sweep(task, data, callbacks=callbacks, **settings)
    lengths = {len(one.rows) for one in result.runs}
    assert len(lengths) > 1
    for one in result.runs:
        accuracies = [row["test_accuracy"] for row in one.rows]
        assert all(b > a for a, b in itertools.pairwise(accuracies[:-1]))
        best = made[one.hparams["client_lr"], one.seed][1]
        assert best.round == peak(one.rows)["round"]
    again = sweep(task, data, callbacks=callbacks, **settings)
    assert [one.rows for one in again.runs] == [one.rows for one in result.runs]


def test_sweeps_refuse_callbacks_that_runs_would_share(task, data):
    with pytest.raises(ValueError, match="a sweep wants a function of hyper-parameters and seed"):
        sweep(task, data, callbacks=[KeepBest()])
    one = KeepBest()
    with pytest.raises(ValueError, match="two runs of the sweep share a callback"):
        sweep(task, data, callbacks=lambda hparams, seed: [one])
    with pytest.raises(ValueError, match="callbacks and stop_at are both given"):
        sweep(task, data, callbacks=lambda hparams, seed: [], stop_at=0.9)


def test_callbacks_change_no_rows_and_compile_nothing(task, data, tmp_path):
    plain = run(task, data, workdir=tmp_path / "plain")
    watched = run(task, data, callbacks=[Plain(), KeepBest()], workdir=tmp_path / "watched")
    assert without_clock(plain.rows) == without_clock(watched.rows)
    assert watched.compilations == 0
    config = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "watched")]
    assert config[0] == config[1]
