"""The FedAvg paper's figures of learning curves: what they show, and from which runs.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629.
"""

import math
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_sim import checks
from fedjax_sim.participation import cohort_size
from fedjax_sim.reporting import best_of_each_seed, envelope, plot_curves
from papers.fedavg.cells import USUAL_FRACTION, PublishedCell, choose_rows, choose_target
from papers.fedavg.published import published
from papers.fedavg.two_models import FIGURE_1_RECORD
from papers.fedavg.workloads import IID, NON_IID

Panels = dict[str, dict[str, tuple[Any, Any]]]
# Kinds of curves.
BEST = "best"  # the highest test accuracy so far of any rate, from the runs that a table counts
EACH = "each"  # the test accuracy at one rate, from the figure's own runs
LOSS = "loss"  # the loss of the shared model on the whole training set, from the figure's own runs
_POINTS = types.MappingProxyType({EACH: 100, LOSS: 15})  # per curve; the whole training set is slow


class Figure(NamedTuple):
    """A figure of learning curves.

    Attributes:
      shows: `BEST`, `EACH` or `LOSS`.
      cells: cells to draw.
      sentence: what the paper shows.
      rates: function from a cell to its rates, for `EACH`; by default the best, or the middle starting
        rate.
      num_rounds: rounds of a run, for `EACH` and `LOSS`.
      eval_every: rounds between evaluations; by default a curve has 100 points, one of the loss 15.
      computations: whether the x-axis is minibatch gradients of all clients together, not rounds; every
        cell then computes as many as the costliest does in `num_rounds`.
      log: whether the loss's axis is logarithmic.
    """

    shows: str
    cells: tuple[PublishedCell, ...]
    sentence: str
    rates: Callable[[PublishedCell], tuple[float, ...]] | None = None
    num_rounds: int = 30
    eval_every: int | None = None
    computations: bool = False
    log: bool = False


def _of_table(table: int | None, model: str, *rows: str) -> tuple[PublishedCell, ...]:
    """Returns the cells of these rows, or of all, each at its hardest target."""
    return tuple(choose_target(choose_rows(published(table, model), list(rows) or None), None))


# The paper's text names no E for figure 3, and only C = 0 for figure 9.
_LARGE_E = tuple(
    PublishedCell(None, "lstm", partition, USUAL_FRACTION, epochs, 10, 0.54, None)
    for epochs in (1, 5, 10, 20, 50, 100)
    for partition in (IID, NON_IID)
)
_COMPUTATIONS = tuple(
    PublishedCell(None, "cifar", IID, fraction, epochs, 50, None, None)
    for fraction, epochs in ((None, None), (0.0, 1), (0.0, 5), (0.1, 1), (0.1, 5))
)
_WORDS = tuple(
    PublishedCell(None, "word", NON_IID, None, epochs, batch, 0.105, None)
    for epochs, batch in ((1, math.inf), (1, 8), (5, 8))
)

FIGURES = types.MappingProxyType(
    {
        2: Figure(
            BEST,
            _of_table(2, "cnn") + _of_table(2, "lstm"),
            "The paper: more local computation, by smaller B or larger E, brings the CNN to 99 % in up "
            "to 35 times fewer rounds than FedSGD; with two digits per client in up to 2.8 times fewer, "
            "though three settings need more than FedSGD. It brings the LSTM to 54 % in up to 13 times "
            "fewer rounds, and in up to 95 times fewer if each client is a role of a play.",
        ),
        3: Figure(
            EACH,
            _LARGE_E,
            "The paper: with very many local epochs FedAvg can reach a plateau or diverge.",
            rates=lambda cell: (1.47,),
        ),
        4: Figure(
            EACH,
            _of_table(3, "cifar", "E=1/B=inf", "E=5/B=50"),
            "The paper: FedAvg with E = 5 and B = 50 reaches 80 % in 280 rounds and 85 % in 2,000; "
            "FedSGD reaches 80 % in 3,750 and not 85 %.",
            rates=PublishedCell.starting_rates,
            num_rounds=2000,
        ),
        5: Figure(
            BEST,
            _of_table(None, "word"),
            "The paper, on posts that are not public: FedAvg at rate 9 reaches 10.5 % in 35 rounds, "
            "FedSGD at rate 18 in 820.",
        ),
        6: Figure(
            LOSS,
            _of_table(2, "cnn", "E=1/B=inf", "E=1/B=10", "E=5/B=10", "E=20/B=10"),
            "The paper: FedAvg is effective at optimising the training loss as well, even beyond the "
            "point where test accuracy reaches its plateau.",
            log=True,
        ),
        7: Figure(
            BEST,
            _of_table(4, "2nn"),
            "The paper: every FedAvg setting of the 2NN needs fewer rounds to 97 % than FedSGD, up to "
            "46 times fewer with IID clients, up to 3.7 times with two digits each.",
        ),
        8: Figure(
            LOSS,
            _of_table(2, "cnn", "E=1/B=10", "E=5/B=10", "E=20/B=10"),
            "The paper: many local epochs do not slow the CNN's convergence significantly, whereas they "
            "can make the Shakespeare LSTM stall or diverge.",
        ),
        9: Figure(
            EACH,
            _COMPUTATIONS,
            "The paper: with modest C and E, FedAvg makes progress similar to sequential SGD per "
            "minibatch gradient; SGD and FedAvg with one client per round oscillate, and averaging over "
            "more clients smooths that out.",
            computations=True,
        ),
        10: Figure(
            EACH,
            _WORDS,
            "The paper, on posts that are not public: FedAvg does better with E = 1 than with E = 5, "
            "and its accuracy varies less from evaluation to evaluation than that of FedSGD.",
            num_rounds=820,
            eval_every=20,
        ),
    }
)


def figure_cells(number: int, model: str | None = None) -> list[PublishedCell]:
    """Returns the cells that a figure draws for one model, by default its first.

    Raises:
      ValueError: the figure does not show this model; the message lists those that it shows.
    """
    cells = FIGURES[number].cells
    models = {cell.model: None for cell in cells}
    if model is not None:
        checks.choose(f"model of figure {number}", model, models)
    wanted = model or cells[0].model
    return [cell for cell in cells if cell.model == wanted]


def figure_record(number: int, cell: PublishedCell) -> str:
    """Returns the name of the record with the runs that a figure draws of a cell."""
    prefix = {BEST: "", EACH: f"figure{number}-", LOSS: "loss-"}
    return prefix[FIGURES[number].shows] + cell.name


def figure_rates(
    number: int, cell: PublishedCell, record: Mapping[str, Any] | None
) -> tuple[float, ...]:
    """Returns the learning rates of a figure's own runs of a cell.

    Args:
      number: number of the figure.
      cell: cell of the figure.
      record: record of the cell's runs to its target, if any.
    """
    rates = FIGURES[number].rates
    if rates is not None:
        return rates(cell)
    if record is None:
        return cell.starting_rates()[1:2]
    return (best_of_each_seed(record["runs"])[0].rate,)


def figure_rounds(number: int, cell: PublishedCell, num_rounds: int | None = None) -> tuple[int, int]:
    """Returns the rounds of a figure's own runs of a cell, and the rounds between evaluations.

    Args:
      number: number of the figure.
      cell: cell of the figure.
      num_rounds: replaces the figure's number of rounds.
    """
    figure = FIGURES[number]
    rounds = figure.num_rounds if num_rounds is None else num_rounds
    if figure.computations:
        most = max(map(_computations, figure.cells))
        rounds = math.ceil(rounds * most / _computations(cell))
    return rounds, figure.eval_every or math.ceil(rounds / _POINTS[figure.shows])


def _computations(cell: PublishedCell) -> float:
    """Returns the minibatch gradients of a round."""
    if cell.algorithm == "sgd":
        return cell.updates
    return cohort_size(cell.workload.num_clients, cell.client_fraction) * cell.updates


def figure_panels(number: int, records: Mapping[str, Mapping[str, Any]]) -> Panels:
    """Returns a figure's curves of the cells that have run, with a panel per model and partition."""
    figure = FIGURES[number]
    panels: Panels = {}
    for cell in figure.cells:
        record = records.get(figure_record(number, cell))
        if record is not None:
            curves = panels.setdefault(_panel_title(figure, cell), {})
            curves.update(_curves(figure, cell, record["runs"]))
    return panels


def _panel_title(figure: Figure, cell: PublishedCell) -> str:
    title = cell.workload.panel_title(cell.partition)
    several = len({cell.model for cell in figure.cells}) > 1
    return f"{cell.workload.title}, {title}" if several else title


def _targets(figure: Figure, records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the target accuracy of each panel whose runs had one."""
    ran = [cell for cell in figure.cells if figure.shows == BEST and cell.name in records]
    return {_panel_title(figure, cell): records[cell.name]["cell"]["target"] for cell in ran}


def _curves(figure: Figure, cell: PublishedCell, runs: Any) -> dict[str, tuple[Any, Any]]:
    """Returns a cell's curves by label, for the first of several seeds."""
    label = "FedSGD" if cell.algorithm == "fed_sgd" else cell.row.replace("/", ", ")
    seed = runs[0]["seed"]
    if figure.shows == BEST:
        return {label: envelope(runs, seed)}
    values = "accuracy" if figure.shows == EACH else "full_train_loss"
    scale = _computations(cell) if figure.computations else 1
    return {
        f"{label}, rate {run['rate']:g}": ([scale * r for r in run["rounds"]], run[values])
        for run in runs
        if run["seed"] == seed
    }


def draw_figure(
    number: int, records: Mapping[str, Mapping[str, Any]], folder: str | pathlib.Path
) -> pathlib.Path | None:
    """Writes `figureN.png`, or nothing before any of its curves has run.

    Args:
      number: 1, or one of `FIGURES`.
      records: all records, by name.
      folder: folder to write to.

    Returns:
      The figure's path, or None.
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
        target=_targets(figure, records),
        ylabel="loss on all train data" if figure.shows == LOSS else "test accuracy",
        log=figure.log,
        xlabel="gradients of minibatches" if figure.computations else "communication rounds",
        title=f"Figure {number}",
    )
    return path
