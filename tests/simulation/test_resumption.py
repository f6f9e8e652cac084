"""Checkpoints: interrupted runs end as if they had not been, damaged ones fall back."""

import json
import logging

import jax
import pytest
import toys
from test_simulate import run, without_clock

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")


class KilledError(Exception):
    """Stands for the end of a process."""


def killed_after(task, evaluations):
    """An evaluation that ends the run the n-th time that it is called."""
    evaluate = fs.evaluator(task, toys.dataset(31, seed=9), layout=toys.layout())
    left = iter(range(evaluations))

    def stop(params):
        if next(left, None) is None:
            raise KilledError
        return evaluate(params)

    return stop


def rows_of(home):
    return [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]


def stateful(task):
    """An algorithm with state on the server, counters and a PRNG key beside the model."""
    return fs.sgd(task, batch_size=4, steps_per_round=3, client_lr=0.1)


@pytest.mark.parametrize(
    "make", [None, pytest.param(stateful, marks=pytest.mark.slow)], ids=["fed_avg", "sgd"]
)
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
def test_an_interrupted_run_ends_to_the_bit_as_one_that_was_not(
    task, data, tmp_path, make, checkpoint_seconds
):
    chosen = make(task) if make else None
    whole = run(task, data, chosen=chosen, num_rounds=5)
    home = tmp_path / "run"
    settings = {"workdir": home, "num_rounds": 5, "checkpoint_seconds": checkpoint_seconds}
    for evaluations in (1, 1, 2):  # the rest is left for the last part
        with pytest.raises(KilledError):
            run(task, data, chosen=chosen, evaluate=killed_after(task, evaluations), **settings)
    resumed = run(task, data, chosen=chosen, **settings)
    toys.assert_same(resumed.params, whole.params)
    assert without_clock(rows_of(home)) == without_clock(whole.rows)
    assert without_clock(resumed.rows) == without_clock(whole.rows)
    clock = [row["seconds"] for row in resumed.rows]
    assert clock == sorted(clock)


def test_a_finished_run_is_not_run_again(task, data, tmp_path):
    first = run(task, data, workdir=tmp_path / "run")
    # A plain function judges the first and the last model again, so that another one is noticed.
    again = run(task, data, workdir=tmp_path / "run", evaluate=killed_after(task, 2))
    toys.assert_same(first.params, again.params)
    assert first.rows == again.rows


def test_at_most_three_checkpoints_are_kept(task, data, tmp_path):
    run(task, data, workdir=tmp_path / "run", checkpoint_seconds=0.0)
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [4, 5, 6]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove])
def test_a_damaged_checkpoint_falls_back_to_the_last_whole_one(task, data, tmp_path, caplog, damage):
    home = tmp_path / "run"
    whole = run(task, data, workdir=home, checkpoint_seconds=0.0)
    newest = home / "checkpoints" / "6"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damage(largest)
    with caplog.at_level(logging.WARNING):
        resumed = run(task, data, workdir=home)
    assert "checkpoint of round 6 is damaged" in caplog.text
    assert (home / "checkpoints_unreadable" / "6").is_dir()
    toys.assert_same(resumed.params, whole.params)
    assert without_clock(rows_of(home)) == without_clock(whole.rows)


def test_without_any_whole_checkpoint_the_run_starts_again(task, data, tmp_path, caplog):
    home = tmp_path / "run"
    whole = run(task, data, workdir=home, checkpoint_seconds=0.0)
    for meta in (home / "checkpoints").glob("*/meta/metadata"):
        meta.write_text("{")
    resumed = run(task, data, workdir=home)
    assert caplog.text.count("is damaged") == 3
    toys.assert_same(resumed.params, whole.params)
    assert without_clock(rows_of(home)) == without_clock(whole.rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hparams": {"client_lr": 0.2}}, "client_lr: 0.1 there, 0.2 now"),
        ({"eval_every": 2}, "eval_every: 1 there, 2 now"),
        ({"key": jax.random.key(8)}, "key: "),
        ({"config": {"model": "cnn"}}, "model: 'absent' there, 'cnn' now"),
    ],
)
def test_a_workdir_of_another_configuration_is_refused(task, data, tmp_path, settings, message):
    home = tmp_path / "run"
    run(task, data, workdir=home)
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    with pytest.raises(ValueError, match=message):
        run(task, data, workdir=home, **settings)
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*")}


def test_two_processes_do_not_share_a_workdir(task, data, tmp_path):
    home = tmp_path / "run"

    def enter_again(params):
        run(task, data, workdir=home)
        raise AssertionError("the second run was let in")

    with pytest.raises(ValueError, match="another process is running in"):
        run(task, data, workdir=home, evaluate=enter_again)


def test_a_workdir_of_other_data_is_refused(task, data, tmp_path):
    run(task, data, workdir=tmp_path / "run")
    with pytest.raises(ValueError, match="data_digest"):
        run(task, toys.federation(seed=1), workdir=tmp_path / "run")


def test_a_folder_of_other_files_is_refused(task, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"not empty and holds no config\.json"):
        run(task, data, workdir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
