"""Cells run on toys: curves of a figure's own, rates that diverge, one run or several."""

import pytest
import toys
from papers import fedavg

import fedjax_sim as fs

TRAIN, TEST = toys.dataset(200), toys.dataset(31, seed=9)


def curves(number, cell, task, *rates, **settings):
    settings = {"rates": list(rates), "num_rounds": 2} | settings
    return fedavg.run_curves(number, cell, task, TRAIN, TEST, **settings)["runs"]


def test_a_figure_of_losses_follows_all_train_data(task):
    cell = fedavg.FIGURES[8].cells[0]
    (run,) = curves(8, cell, task, 0.1)
    assert (run["rate"], run["rounds"], run["rounds_to_target"]) == (0.1, [0, 1, 2], None)
    assert run["full_train_loss"][-1] < run["full_train_loss"][0]


@pytest.mark.slow
def test_lower_rates_are_tried_where_a_loss_diverges(task):
    cell = fedavg.FIGURES[6].cells[0]
    with pytest.raises(fs.DivergenceError, match=r"diverged in round 1 even at rate 2.15e\+29"):
        curves(6, cell, task, 1e30)


@pytest.mark.slow
def test_a_rate_that_diverges_is_part_of_a_figure_of_accuracies(task):
    cell = fedavg.FIGURES[4].cells[0]
    runs = curves(4, cell, task, 0.1, 1e30, seeds=(0, 1))
    assert [(run["rate"], run["seed"]) for run in runs] == [(0.1, 0), (0.1, 1), (1e30, 0), (1e30, 1)]
    assert [run["diverged"] for run in runs] == [None, None, 1, 1]
    assert [run["rounds"] for run in runs] == [[0, 1, 2]] * 2 + [[0]] * 2
    assert not any("full_train_loss" in run for run in runs)


def test_a_round_of_sequential_sgd_is_an_update(task):
    cell = fedavg.published(3, "cifar")[0]
    record = fedavg.run_cell(
        cell,
        task,
        fedavg.paper_clients(cell, TRAIN),
        fedavg.evaluation(task, TEST, num_runs=1),
        rates=[0.1],
        num_rounds=500,
        most_rates=1,
    )
    assert (record["eval_every"], record["cell"]["target"]) == (5, 0.8)
    assert record["runs"][0]["rounds"] == list(range(0, record["runs"][0]["rounds"][-1] + 1, 5))
    assert record["runs"][0]["best_accuracy"] > 0.6
