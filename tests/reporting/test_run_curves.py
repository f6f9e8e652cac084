"""Curves of results, on Axes that the caller may give."""

import matplotlib
import numpy as np
import pytest

import fedjax_sim as fs

matplotlib.use("Agg")

from matplotlib import pyplot

SENT = ["bytes_down", "bytes_up"]
SENT += [
    f"{what}_{kind}" for what in ("trips", "messages", "bytes") for kind in ("down_model", "up_update")
]


def rows(accuracies, every=5):
    return [
        {"round": every * i, "train_loss": None if i == 0 else 1 / i, "test_accuracy": accuracy}
        | dict.fromkeys(SENT, 1_000_000 * i)
        for i, accuracy in enumerate(accuracies)
    ]


def one_run(rate, seed, accuracies, diverged=None):
    return fs.simulation.SweepRun({"client_lr": rate, "mu": 1.0}, seed, rows(accuracies), None, diverged)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def line(ax, i=0):
    return ax.get_lines()[i].get_xydata().tolist()


def test_a_result_draws_its_accuracy_over_rounds():
    result = fs.Result(None, rows([0.1, 0.5, 0.7]), None, fs.Layout(), 0, 0.0)
    ax = result.plot()
    assert ax.figure.number in pyplot.get_fignums()  # so that a notebook shows it
    assert line(ax) == [[0, 0.1], [5, 0.5], [10, 0.7]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("communication rounds", "test accuracy")
    assert result.plot("train_loss", axis="bytes", ax=ax) is ax
    assert line(ax, 1) == [[2, 1.0], [4, 0.5]]  # MB up and down; no loss before the first round
    assert "seconds of communication" in result.plot(axis="seconds").get_xlabel()
    with pytest.raises(ValueError, match="the rows have no metric 'f1'; they have round"):
        result.plot("f1")
    with pytest.raises(ValueError, match="unknown axis 'hours'"):
        result.plot(axis="hours")


def test_a_sweep_draws_means_and_ranges_over_seeds():
    runs = (
        one_run(0.1, 0, [0.1, 0.5, 0.7]),
        one_run(0.1, 1, [0.3, 0.9]),  # shorter, so that there is no mean in round 10
        one_run(0.2, 0, [0.2, 0.4]),
        one_run(0.2, 1, [0.2], diverged=3),
        one_run(9.0, 0, [0.2], diverged=1),
    )
    ax = fs.SweepResult(runs, None, 1.0, 0, 0.0).plot()
    first, second = line(ax), line(ax, 1)
    np.testing.assert_allclose(first, [[0, 0.2], [5, 0.7]])
    assert second == [[0, 0.2], [5, 0.4]]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices
    assert {tuple(point) for point in np.round(heights, 6).tolist()} >= {(5, 0.5), (5, 0.9), (0, 0.1)}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["client_lr=0.1", "client_lr=0.2 (1 of 2 seeds diverged)"]
    assert ax.get_legend().get_title().get_text() == "mean of seeds, band from least to most"
    with pytest.raises(ValueError, match="all runs of the sweep diverged"):
        fs.SweepResult(runs[-1:], None, 1.0, 0, 0.0).plot()
