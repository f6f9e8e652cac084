"""Loggers: files and services receive each row once, also of a run that is continued."""

import csv
import sys
import types

import pytest
from test_plots import scalars

from fedjax_sim.reporting import CSVLogger, TensorBoardLogger, WandbLogger

ROWS = [
    {"round": 0, "train_loss": None, "test_accuracy": 0.125},
    {"round": 5, "train_loss": 1.5, "test_accuracy": 0.25, "mean_lag": 2.0},
    {"round": 10, "train_loss": 0.5, "test_accuracy": 0.75, "mean_lag": 1.0},
]
VECTOR = {"round": 15, "recall": [0.5, None], "confusion": [[0.5, 0.5]]}
KNOWN = {(k, row["round"]): v for row in ROWS for k, v in row.items() if k != "round" and v is not None}


def play(logger, recorded, new):
    """Shows a logger a run with recorded rows that goes on."""
    logger.on_start(None, [dict(row) for row in recorded], None)
    for row in new:
        assert not logger.on_evaluation(None, dict(row))
    logger.on_end()


def test_a_csv_file_holds_all_rows(tmp_path):
    path = tmp_path / "rows.csv"
    for recorded, new in ((0, 2), (1, 3), (3, 3)):  # the second was killed before it saved a row
        play(CSVLogger(path), ROWS[:recorded], ROWS[recorded:new])
        with path.open() as file:
            found = list(csv.DictReader(file))
        expected = ROWS[:new]
        assert [row["round"] for row in found] == [str(row["round"]) for row in expected]
        assert [row["mean_lag"] for row in found] == [str(row.get("mean_lag", "")) for row in expected]
    play(CSVLogger(path), [], ROWS[:1])
    assert path.read_text() == "round,train_loss,test_accuracy\n0,,0.125\n"


def test_tensorboard_receives_each_row(tmp_path):
    pytest.importorskip("tensorboardX")
    play(TensorBoardLogger(tmp_path / "new"), [], ROWS)
    assert scalars(tmp_path / "new") == KNOWN
    play(TensorBoardLogger(tmp_path / "continued"), ROWS[:2], [*ROWS[2:], VECTOR])
    assert scalars(tmp_path / "continued") == KNOWN | {("recall/0", 15): 0.5}


class FakeRun:
    """A run of W&B."""

    def __init__(self, resumed, step):
        self.resumed, self.step, self.logged, self.finished = resumed, step, {}, 0

    def log(self, values, step):
        self.logged |= {(name, step): value for name, value in values.items()}

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize(("resumed", "step", "first"), [(False, 0, 0), (True, 6, 10)])
def test_wandb_receives_each_row_once(monkeypatch, resumed, step, first):
    given, fake = [], FakeRun(resumed, step)

    def init(**settings):
        given.append(settings)
        return fake

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    logger = WandbLogger(project="digits")
    assert not given  # the service hears of a run when it begins
    play(logger, ROWS[:2], [*ROWS[2:], VECTOR])
    assert given == [{"project": "digits"}]
    assert fake.finished == 1
    known = KNOWN | {("recall/0", 15): 0.5}
    assert fake.logged == {(name, r): value for (name, r), value in known.items() if r >= first}


@pytest.mark.parametrize(
    ("package", "make"), [("wandb", WandbLogger), ("tensorboardX", lambda: TensorBoardLogger("x"))]
)
def test_a_missing_package_is_named_before_the_run(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make()
