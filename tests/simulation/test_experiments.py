"""Results to work with: extended, interrupted by Ctrl-C, loaded from workdirs, shown as tables."""

import functools
import importlib
import itertools
import json
import pickle
import re
import signal
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import toys
from test_host_memory import remembered, scaffold, simulate
from test_resumption import rows_of
from test_simulate import algorithm, run, without_clock
from test_sweep import sweep

import fedjax_sim as fs
from fedjax_sim.simulation import EarlyStopping, KeepBest
from fedjax_sim.simulation.progress import Progress

pytestmark = pytest.mark.usefixtures("quick_compilation")

scaffold = functools.cache(scaffold)  # so that tests share what is compiled


@pytest.mark.parametrize("placement", [pytest.param("device", marks=pytest.mark.slow), "host"])
def test_an_extended_run_is_one_longer_run_to_the_bit(task, data, placement):
    settings = {"eval_every": 2}
    short = simulate(scaffold(task), data, placement, num_rounds=4, **settings)
    before = jax.tree.map(np.array, remembered(short))
    extended = short.extend(2).extend(2)
    whole = simulate(scaffold(task), data, placement, num_rounds=8, **settings)
    toys.assert_same(remembered(extended), remembered(whole))
    assert without_clock(extended.rows) == without_clock(whole.rows)
    seconds = [row["seconds"] for row in extended.rows]
    assert seconds == sorted(seconds)
    assert [row["round"] for row in short.rows] == [0, 2, 4]
    toys.assert_same(remembered(short), before)  # it stays as it was
    toys.assert_same(remembered(short.extend(4)), remembered(whole))


@pytest.mark.slow
def test_a_sampler_with_a_state_goes_on(task, data):
    buffered = fs.fed_buff(task, client_lr=0.1, local_epochs=1, batch_size=4, concurrency=4, buffer=2)
    settings = {"key": jax.random.key(0), "layout": toys.layout()}
    short = fs.simulate(buffered, data, num_rounds=2, **settings)
    whole = fs.simulate(buffered, data, num_rounds=3, **settings)
    extended = short.extend(1)
    assert without_clock(extended.rows) == without_clock(whole.rows)
    toys.assert_same(extended.state, whole.state)


def test_a_run_with_a_workdir_is_extended_there(task, data, tmp_path):
    best = KeepBest()
    short = run(task, data, num_rounds=2, workdir=tmp_path, callbacks=[best])
    extended = short.extend(4)
    whole_best = KeepBest()
    whole = run(task, data, num_rounds=6, callbacks=[whole_best])
    toys.assert_same(extended.params, whole.params)
    assert without_clock(rows_of(tmp_path)) == without_clock(whole.rows)
    toys.assert_same(best.params, whole_best.params)


def test_callbacks_of_an_extended_run_go_on(task, data):
    stop, best = EarlyStopping(patience=2), KeepBest()
    extended = run(task, data, num_rounds=1, callbacks=[stop, best]).extend(19)
    whole_best = KeepBest()
    whole = run(task, data, num_rounds=20, callbacks=[EarlyStopping(patience=2), whole_best])
    assert without_clock(extended.rows) == without_clock(whole.rows)
    assert extended.ended_by == "callback"
    toys.assert_same(best.params, whole_best.params)
    with pytest.raises(ValueError, match=f"since round {whole.rows[-1]['round']}, where a callback"):
        extended.extend(1)


def test_what_cannot_be_extended_says_why(task, data):
    with pytest.raises(ValueError, match=r"is over since round \d, where stop_at=0\.01 was reached"):
        run(task, data, stop_at=0.01).extend(1)
    result = run(task, data, num_rounds=1)
    with pytest.raises(ValueError, match="num_rounds is 0; wanted a whole number"):
        result.extend(0)
    copied = pickle.loads(pickle.dumps(result))
    toys.assert_same(copied.params, result.params)
    with pytest.raises(ValueError, match="this result does not know its run"):
        copied.extend(1)


@pytest.fixture(autouse=True)
def pythons_own_handler_of_ctrl_c():
    """Jobs in the background and tests of scripts have another one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(task, calls, *at):
    """An evaluation during which the user presses Ctrl-C at these calls."""
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())

    def judge(params):
        if next(calls) in at:
            signal.raise_signal(signal.SIGINT)
        return evaluate(params)

    return judge


def interrupted(task, data, at=(3,), **settings):
    return run(task, data, evaluate=interrupting(task, itertools.count(1), *at), **settings)


def test_ctrl_c_returns_the_rounds_done(task, data, capsys):
    with pytest.warns(UserWarning, match="the run stopped after round 2 of 6.*extend"):
        result = interrupted(task, data)
    assert result.ended_by == "interrupt"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "Press Ctrl-C again to stop at once" in capsys.readouterr().err
    whole = run(task, data)
    assert without_clock(result.rows) == without_clock(whole.rows[:3])
    toys.assert_same(result.extend(4).params, whole.params)


def test_ctrl_c_saves_a_checkpoint_first(task, data, tmp_path):
    with pytest.warns(UserWarning, match="Repeat it with the workdir"):
        interrupted(task, data, workdir=tmp_path, checkpoint_seconds=1000.0)
    assert (tmp_path / "checkpoints" / "2").is_dir()
    whole = run(task, data)
    resumed = run(task, data, workdir=tmp_path)
    toys.assert_same(resumed.params, whole.params)
    assert without_clock(rows_of(tmp_path)) == without_clock(whole.rows)


def test_a_second_ctrl_c_ends_the_run_at_once(task, data):
    def twice(params):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was ignored")

    with pytest.raises(KeyboardInterrupt):
        run(task, data, evaluate=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_block_loses_nothing(task, data):
    result = interrupted(task, data, at=(7,))
    assert result.ended_by == "num_rounds"
    assert result.rows[-1]["round"] == 6


def test_handlers_of_the_program_are_left_alone(task, data):
    def own(signum, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, own)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(task, data)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_runs_in_other_threads_touch_no_handler(task, data):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(task, data, num_rounds=1)))
    thread.start()
    thread.join()
    assert results[0].ended_by == "num_rounds"


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_returns_the_runs_of_a_sweep_so_far(task, data, tmp_path, stacked):
    calls, pressed = itertools.count(1), threading.Event()
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())

    def judge(params):
        if next(calls) == 6:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            pressed.set()
        return evaluate(params)

    settings = {"workdir": tmp_path, "num_rounds": 3000, "eval_every": 1, "stacked": stacked}
    with pytest.warns(UserWarning, match=r"of at most 12000 rounds are done, and \d of 4 runs"):
        result = sweep(task, data, evaluate=judge, **settings)
    assert pressed.is_set()
    assert result.interrupted
    assert all(0 < len(one.rows) < 3000 for one in result.runs)
    repr(result)
    for one in result.runs:
        name = ",".join(f"{k}={v}" for k, v in (one.hparams | {"seed": one.seed}).items())
        assert fs.load_run(tmp_path / name).params_round == one.rows[-1]["round"]


def test_a_sweep_without_hyper_parameters_tries_seeds(task, data):
    result = sweep(task, data, hparams=None, seeds=range(3))
    rates = sweep(task, data, hparams={"client_lr": [0.1]}, seeds=[0, 1, 2])
    assert [one.seed for one in result.runs] == [0, 1, 2]
    assert [one.hparams for one in result.runs] == [dict(algorithm(task).hparams)] * 3
    assert [without_clock(one.rows) for one in result.runs] == [
        without_clock(b.rows) for b in rates.runs
    ]


def test_a_run_is_loaded_without_its_algorithm(task, data, tmp_path):
    settings = {"workdir": tmp_path, "config": {"who": "ann"}, "checkpoint_seconds": 0.0}
    result = run(task, data, stop_at=0.99, **settings)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    loaded = fs.load_run(tmp_path)
    assert loaded.rows == result.rows
    assert loaded.config["who"] == "ann"
    assert loaded.params_round == 6
    toys.assert_same(loaded.params, jax.device_get(result.params))
    known = result.summary()
    assert loaded.summary().items() <= known.items()
    np.testing.assert_array_equal(loaded.history()["test_loss"], result.history()["test_loss"])
    assert repr(loaded).startswith("<LoadedRun of 6 rounds, parameters of round 6: train_loss")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_loaded_run_is_what_a_killed_one_has_left(task, data, tmp_path, caplog):
    run(task, data, workdir=tmp_path, checkpoint_seconds=0.0)
    rows = rows_of(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(rows[-1] | {"round": 7}) + '\n{"round": 8, "tr')
    (tmp_path / "checkpoints" / "6" / "meta" / "metadata").write_text("{")
    loaded = fs.load_run(tmp_path)
    assert [row["round"] for row in loaded.rows] == [*range(8)]
    assert loaded.params_round == 5
    assert "checkpoint of round 6 is damaged" in caplog.text
    assert (tmp_path / "checkpoints" / "6").is_dir()


def test_clients_memory_and_samplers_are_passed_over(task, data, tmp_path):
    result = simulate(scaffold(task), data, "host", workdir=tmp_path)
    toys.assert_same(fs.load_run(tmp_path).params, jax.device_get(result.state.server.params))


def test_what_is_no_run_is_not_loaded(task, data, tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run"):
        fs.load_run(tmp_path)
    home = tmp_path / "sweep"
    result = sweep(task, data, workdir=home, num_rounds=2)
    with pytest.raises(ValueError, match="holds a sweep; wanted the folder of one of its runs, such as"):
        fs.load_run(home)
    folder = next(path for path in home.iterdir() if path.is_dir() and path.name.endswith("seed=3"))
    assert fs.load_run(folder).rows in [one.rows for one in result.runs]
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no rows yet"):
        fs.load_run(folder)
    (folder / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="is damaged: it holds a list"):
        fs.load_run(folder)


def test_results_become_frames(task, data, monkeypatch):
    pandas = pytest.importorskip("pandas")
    result = run(task, data, num_rounds=2)
    frame = result.to_frame()
    assert frame.shape[0] == 3
    assert frame["test_accuracy"].tolist() == [row["test_accuracy"] for row in result.rows]
    swept = sweep(task, data, hparams={"client_lr": [0.03, 1e30]}, num_rounds=2)
    frame = swept.to_frame()
    assert len(frame) == sum(len(one.rows) for one in swept.runs)
    bad = frame[frame["client_lr"] == 1e30]
    assert bad["diverged"].tolist() == [1.0, 1.0]
    assert bad["seed"].tolist() == [3, 4]
    assert pandas.isna(frame["diverged"]).sum() == len(frame) - 2
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_frame()


def test_tables_in_notebooks_are_escaped(task, data):
    result = run(task, data, num_rounds=1)
    assert f"<td>{result.rows[-1]['test_loss']:.4g}</td>" in result._repr_html_()
    swept = sweep(task, data, num_rounds=2)
    html = swept._repr_html_()
    assert html.count("<tr>") == 5
    best = max(swept.runs, key=lambda one: one.best_accuracy)
    assert html.index(f"<td>{best.best_accuracy:.4g}</td>") < html.index("</tr>", html.index("<td>"))
    strange = fs.data.from_arrays(
        np.zeros((3, 2)), np.arange(3), name="<b>&", keys={"<i>": np.arange(3)}
    )
    federated = fs.data.federate(strange, fs.data.iid(num_clients=2))
    for shown in (strange, federated):
        html = shown._repr_html_()
        assert "&lt;b&gt;&amp;" in html
        assert "<b>" not in html
        assert "<i>" not in html
        assert "<td>float32[2]</td>" in html
    assert "<td>1 to 2, median 1.5</td>" in federated._repr_html_()
    assert jax.device_put(federated)._repr_html_().startswith("<table><caption>&lt;data")


def test_progress_of_a_sweep_names_its_best_run(task, data, capsys):
    result = sweep(task, data, progress=True)
    line = capsys.readouterr().err.splitlines()[-1]
    best = max(result.runs, key=lambda one: one.best_accuracy)
    told = f"round 16/16: best test_accuracy {best.best_accuracy:.4f} of client_lr="
    assert line.startswith(told)
    assert ", seed=" in line


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_terminals_and_notebooks_show_a_bar_with_the_time_left(monkeypatch, capsys, place):
    importlib.import_module("tqdm.auto")  # before it could find the notebook's widgets
    if place == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    else:
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})
        module = types.SimpleNamespace(get_ipython=lambda: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
    with Progress(10, done=2) as bar:
        time.sleep(0.2)  # the bar is drawn ten times a second at most
        bar.update(6, "test_accuracy 0.5000", last=False)
    shown = capsys.readouterr().err
    assert re.search(r"6/10 \[00:\d\d<00:\d\d, .*round/s, test_accuracy 0\.5000\]", shown)
