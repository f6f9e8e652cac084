"""The FedAvg paper's figures on MNIST: what they show, and how their curves are made.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629.
"""

import pathlib
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_sim.algorithms import fed_avg
from fedjax_sim.base import Task
from fedjax_sim.data import Dataset, FederatedData, federate
from fedjax_sim.experiment.grids import neighbour
from fedjax_sim.experiment.plots import plot_curves
from fedjax_sim.experiment.protocol import envelope, three_digits
from fedjax_sim.experiment.published import IID, NON_IID, PublishedCell, published
from fedjax_sim.experiment.records import provenance
from fedjax_sim.experiment.reproduction import paper_algorithm
from fedjax_sim.simulation import DivergenceError, accuracy, simulate

Panels = dict[str, dict[str, tuple[Any, Any]]]
_ATTEMPTS = 3
THETAS = np.linspace(-0.2, 1.2, 50)
_PANEL_TITLES = types.MappingProxyType({IID: "IID", NON_IID: "non-IID, two digits each"})


class Figure(NamedTuple):
    """A figure of learning curves.

    Attributes:
      table: whose cells they are of.
      model: likewise.
      rows: of the table, or None for all.
      loss: draws the loss of the shared model on the whole train set, from runs of its own; otherwise
        the test accuracy of the table's cells, the best rate at every round.
      log: of the loss's axis.
      sentence: what the paper shows.
    """

    table: int
    model: str
    rows: tuple[str, ...] | None
    loss: bool
    log: bool
    sentence: str


# Figure 1 has no learning curves; see `average_two_models`.
FIGURE_1_RECORD = "figure1"
FIGURE_1_SENTENCE = (
    "The paper: the average of two models that started from different random values is far worse than "
    "either; when they started from the same values, it is better than both parents, which stand at "
    "theta = 0 and 1."
)
FIGURES = types.MappingProxyType(
    {
        2: Figure(
            2,
            "cnn",
            None,
            loss=False,
            log=False,
            sentence="The paper: more local computation, by smaller B or larger E, brings the CNN to "
            "99 % in up to 35 times fewer rounds than FedSGD; with two digits for each client in up to "
            "2.8 times fewer, and three settings need more than FedSGD.",
        ),
        6: Figure(
            2,
            "cnn",
            ("E=1/B=inf", "E=1/B=10", "E=5/B=10", "E=20/B=10"),
            loss=True,
            log=True,
            sentence="The paper: FedAvg is effective at optimising the training loss as well, even "
            "beyond the point where test accuracy reaches its plateau.",
        ),
        7: Figure(
            4,
            "2nn",
            None,
            loss=False,
            log=False,
            sentence="The paper: every FedAvg setting of the 2NN needs fewer rounds to 97 % than "
            "FedSGD, up to 46 times fewer with IID clients, up to 3.7 times with two digits each.",
        ),
        8: Figure(
            2,
            "cnn",
            ("E=1/B=10", "E=5/B=10", "E=20/B=10"),
            loss=True,
            log=False,
            sentence="The paper: many local epochs do not slow the CNN's convergence significantly, "
            "whereas they can make the Shakespeare LSTM stall or diverge.",
        ),
    }
)


def figure_cells(number: int) -> list[PublishedCell]:
    """The cells whose curves a figure draws."""
    figure = FIGURES[number]
    cells = published(figure.table, figure.model)
    return [cell for cell in cells if figure.rows is None or cell.row in figure.rows]


def loss_name(cell: PublishedCell) -> str:
    """Under which the train loss of a cell is kept."""
    return f"loss-{cell.name}"


def figure_panels(number: int, records: Mapping[str, Mapping[str, Any]]) -> Panels:
    """A figure's curves, of the cells that were run: one panel for each partition that has any."""
    panels: Panels = {}
    for cell in figure_cells(number):
        loss = FIGURES[number].loss
        record = records.get(loss_name(cell) if loss else cell.name)
        if record is None:
            continue
        runs = record["runs"]
        curve = envelope(runs, runs[0]["seed"])
        label = "FedSGD" if cell.is_fed_sgd else cell.row.replace("/", ", ")
        if loss:
            curve = (runs[0]["rounds"], runs[0]["full_train_loss"])
            label += f", rate {runs[0]['rate']:g}"
        panels.setdefault(_PANEL_TITLES[cell.partition], {})[label] = curve
    return panels


def run_loss(
    cell: PublishedCell,
    task: Task,
    clients: FederatedData,
    evaluate: Sequence[Callable[[Any], dict[str, float]]],
    *,
    rate: float,
    num_rounds: int,
    eval_every: int,
) -> dict[str, Any]:
    """Runs a cell at one rate for a fixed number of rounds and records the loss on all train data.

    Where that rate diverges, lower ones of the paper's grid are tried.

    Args:
      cell: of a table.
      task: of the cell's model.
      clients: of the cell's partition.
      evaluate: give "full_train_loss" and "test_accuracy".
      rate: of the clients, such as the cell's best.
      num_rounds: of the run.
      eval_every: rounds between evaluations.

    Returns:
      A record with one run: "rate", "seed", "seconds", "diverged" and the curves "rounds", "accuracy"
      and "full_train_loss".

    Raises:
      DivergenceError: the lowest rate tried diverged as well.
    """
    started = time.perf_counter()
    algorithm = paper_algorithm(cell, task)
    for attempt in range(_ATTEMPTS):
        try:
            result = simulate(
                algorithm,
                clients,
                key=jax.random.key(0),
                hparams={"client_lr": rate},
                num_rounds=num_rounds,
                client_fraction=cell.client_fraction,
                evaluate=evaluate,
                eval_every=eval_every,
                progress=True,
            )
            break
        except DivergenceError:
            if attempt + 1 == _ATTEMPTS:
                raise
            rate = neighbour(rate, 3, -1)
    run = {
        "rate": rate,
        "seed": 0,
        "seconds": round(result.rows[-1]["seconds"], 1),
        "diverged": None,
        "rounds": [row["round"] for row in result.rows],
        "accuracy": [round(row["test_accuracy"], 3) for row in result.rows],
        "full_train_loss": [three_digits(row["full_train_loss"]) for row in result.rows],
    }
    return {
        "cell": cell.identity(),
        "num_rounds": num_rounds,
        "eval_every": eval_every,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
        "runs": [run],
    }


def average_two_models(task: Task, train: Dataset, *, seed: int = 0) -> dict[str, Any]:
    """Figure 1: the loss on all train data of `theta * w + (1 - theta) * w'`, for 50 theta.

    Each parent trains on 600 examples of its own: 20 epochs of batches of 50 at rate 0.1, which is
    240 updates. Once they start from different initial models and once from the same.

    Args:
      task: of the 2NN.
      train: MNIST's training set, `[n, ...]` with n at least 1200.
      seed: of the choice of examples and of the parents' starts.

    Returns:
      "theta" `[50]`, the losses "different" and "shared" `[50]`, and where they come from.
    """
    started = time.perf_counter()
    rows = np.random.default_rng(seed).permutation(len(train))[:1200]
    algorithm = fed_avg(task, optax.sgd, local_epochs=20, batch_size=50, client_lr=0.1)
    evaluate = accuracy(task, train, prefix="full_train")

    def parent(own, start):
        alone = federate(train, [own])
        return simulate(algorithm, alone, key=jax.random.key(start), num_rounds=1).params

    def losses(starts):
        w, other = (parent(own, start) for own, start in zip(np.split(rows, 2), starts, strict=True))
        mixed = (jax.tree.map(lambda a, b, t=t: t * a + (1 - t) * b, w, other) for t in THETAS)
        return [three_digits(evaluate(params)["full_train_loss"]) for params in mixed]

    return {
        "cell": {"figure": 1, "dataset": train.name, "model": "2nn", "seed": seed},
        "theta": [round(float(theta), 4) for theta in THETAS],
        "different": losses((seed, seed + 1)),
        "shared": losses((seed, seed)),
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
        "runs": [],
    }


def draw_figure(
    number: int, records: Mapping[str, Mapping[str, Any]], folder: str | pathlib.Path
) -> pathlib.Path | None:
    """Writes `figureN.png`, or nothing before any of its curves was run.

    Args:
      number: 1, or one of `FIGURES`.
      records: of all that was run, by name.
      folder: where to.

    Returns:
      The picture's path, or None.
    """
    path = pathlib.Path(folder) / f"figure{number}.png"
    if number == 1:
        record = records.get(FIGURE_1_RECORD)
        if record is None:
            return None
        theta = record["theta"]
        panels = {
            "parents with different starts": {"average": (theta, record["different"])},
            "parents with the same start": {"average": (theta, record["shared"])},
        }
        plot_curves(panels, path, ylabel="loss on all train data", xlabel="theta", title="Figure 1")
        return path
    panels = figure_panels(number, records)
    if not panels:
        return None
    figure = FIGURES[number]
    plot_curves(
        panels,
        path,
        target=None if figure.loss else figure_cells(number)[0].target,
        ylabel="loss on all train data" if figure.loss else "test accuracy",
        log=figure.log,
        title=f"Figure {number}",
    )
    return path
