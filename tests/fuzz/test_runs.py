"""Workdirs that were damaged anywhere, and hyper-parameters of any value."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
import toys
from damage import altered, bounded, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

few = settings(bounded, max_examples=60)  # each resumes a run
SETTINGS = {"key": jax.random.key(3), "num_rounds": 3, "checkpoint_seconds": 0.0}


def judge(task):
    return fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())


@pytest.fixture(scope="module")
def algorithm(task):
    return fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def finished(algorithm, task, data, tmp_path_factory):
    """A run of three rounds, its result, and the paths of its files."""
    home = tmp_path_factory.mktemp("runs") / "run"
    result = fs.simulate(algorithm, data, workdir=home, evaluate=judge(task), **SETTINGS)
    paths = sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())
    return home, result, paths


def resumed(algorithm, task, data, home):
    """The run as it continues there; None where it is refused by an error that names the workdir."""
    result, refusal = None, None
    try:
        result = fs.simulate(algorithm, data, workdir=home, evaluate=judge(task), **SETTINGS)
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or str(home) in refusal
    return result


def assert_as_it_was(result, whole):
    assert [row["round"] for row in result.rows] == [row["round"] for row in whole.rows]
    for ours, theirs in zip(result.rows, whole.rows, strict=True):
        assert ours["test_loss"] == theirs["test_loss"]
    toys.assert_same(result.params, whole.params)


def copied(home, tmp_path):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return shutil.copytree(home, tmp_path / "copy")


@few
@given(choice=st.data())
def test_a_damaged_file_of_a_workdir_changes_no_result(
    algorithm, task, data, finished, tmp_path, choice
):
    home, whole, paths = finished
    home = copied(home, tmp_path)
    for name in choice.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)):
        path = home / name
        if choice.draw(st.booleans()):
            path.write_bytes(choice.draw(damaged(path.read_bytes())))
        else:
            path.unlink()
    result = resumed(algorithm, task, data, home)
    if result is not None:
        assert_as_it_was(result, whole)


@few
@given(choice=st.data())
def test_an_altered_configuration_is_refused_or_changes_no_result(
    algorithm, task, data, finished, tmp_path, choice
):
    home, whole, _ = finished
    home = copied(home, tmp_path)
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(choice.draw(altered(config))))
    result = resumed(algorithm, task, data, home)
    if result is not None:
        assert_as_it_was(result, whole)


values = st.one_of(
    st.floats(),
    st.integers(-3, 3),
    st.sampled_from([1e39, -1e39, 1e-60, 3.4e38, math.inf, -math.inf, math.nan, 10**400, -0.0]),
    st.sampled_from([None, True, "0.1", "", [], [0.1], {}, 1j]),
    st.sampled_from([np.float32(0.5), np.float64("nan"), np.array(0.2), np.array([0.2])]),
)


@bounded
@given(name=st.sampled_from(["client_lr", "server_lr", "lr_decay"]), value=values)
def test_hyper_parameters_are_refused_by_name_or_train(algorithm, data, name, value):
    refusal = None
    try:
        result = fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=1, hparams={name: value})
    except (ValueError, fs.DivergenceError) as error:
        refusal = str(error)
    if refusal is not None:
        assert name in refusal
        return
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    assert float(value) >= 0


@bounded
@given(
    name=st.sampled_from(["local_epochs", "batch_size"]),
    value=st.one_of(values, st.integers(-(2**70), 2**70)),
)
def test_static_settings_are_refused_by_name_or_taken(task, name, value):
    chosen = {"client_lr": 0.1, "local_epochs": 1, "batch_size": 4} | {name: value}
    refusal = None
    try:
        fs.fed_avg(task, **chosen)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert name in refusal
        return
    assert value == math.inf or (value == int(value) and 1 <= value < 2**31)
