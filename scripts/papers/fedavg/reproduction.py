"""Functions that run cells of the FedAvg paper."""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax

from fedjax_sim import (
    Algorithm,
    DivergenceError,
    Layout,
    Task,
    evaluator,
    fed_avg,
    fed_sgd,
    sgd,
)
from fedjax_sim.data import Dataset, FederatedData, federate, load
from fedjax_sim.reporting import MOST_RATES, neighbour, provenance, sweep_rates, write_json
from fedjax_sim.simulation import UnfinishedError
from papers.fedavg.cells import PublishedCell
from papers.fedavg.figures import FIGURES, LOSS, figure_rounds
from papers.fedavg.published import PARTS, published
from papers.fedavg.tables import ACCEPTED
from papers.fedavg.workloads import WORKLOADS

_WITHOUT_A_NUMBER = 2000  # maximum number of rounds if the paper's run did not reach the target
_POINTS = 100  # per curve, up to the paper's number of rounds
_ATTEMPTS = 3
_SECONDS = "seconds.json"  # taken by the earlier parts of a cell


def paper_data(
    model: str, data_dir: str | os.PathLike | None = None, **settings: Any
) -> tuple[Dataset, Dataset, Task]:
    """Returns the training rows, the test rows for evaluation, and the task.

    Args:
      model: name in `WORKLOADS`.
      data_dir: see `data.load`.
      **settings: further arguments of `data.load`.

    Raises:
      ValueError: a file is damaged, or see `data.load`.
      FileNotFoundError: a file is missing.
    """
    workload = WORKLOADS[model]
    train, test = load(workload.dataset, data_dir=data_dir, **settings)
    if workload.test_rows is not None and len(test) > workload.test_rows:
        rows = np.sort(np.random.default_rng(0).permutation(len(test))[: workload.test_rows])
        examples = {name: column[rows] for name, column in test.examples.items()}
        test = dataclasses.replace(test, examples=examples, keys={})
    return train, test, workload.task()


def paper_clients(cell: PublishedCell, train: Dataset, seed: int = 0) -> FederatedData:
    """Returns the clients of a cell.

    Args:
      cell: cell of a table or a figure.
      train: training rows of its data set.
      seed: seed of the partition.

    Raises:
      ValueError: there are fewer rows than clients, or `train` is another data set.
    """
    return federate(train, cell.workload.partition(cell.partition, seed))


def paper_algorithm(cell: PublishedCell, task: Task) -> Algorithm:
    """Returns a cell's algorithm, with its first starting rate as the hyper-parameter "client_lr"."""
    rate = cell.starting_rates()[0]
    if cell.algorithm == "sgd":
        return sgd(task, optax.sgd, client_lr=rate, batch_size=cell.batch_size, lr_decay=cell.lr_decay)
    if cell.algorithm == "fed_sgd":
        return fed_sgd(task, optax.sgd, client_lr=rate, lr_decay=cell.lr_decay)
    return fed_avg(
        task,
        optax.sgd,
        client_lr=rate,
        local_epochs=cell.local_epochs,
        batch_size=cell.batch_size,
        lr_decay=cell.lr_decay,
    )


def evaluation(
    task: Task, dataset: Dataset, *, num_runs: int, prefix: str = "test"
) -> Callable[[Any], dict[str, float]]:
    """Returns an evaluator for runs side by side: several runs have a core each, a single run has all.

    Args:
      task: task with the metrics.
      dataset: rows to evaluate on.
      num_runs: number of runs of the sweep.
      prefix: see `evaluator`.
    """
    return evaluator(task, dataset, prefix=prefix, layout=None if num_runs == 1 else Layout())


def default_limit(cell: PublishedCell) -> int:
    """Returns the rounds after which a cell counts as missed, in every table that prints it."""
    twins = (twin for table, model in PARTS for twin in published(table, model))
    rounds = [twin.rounds for twin in twins if twin.name == cell.name]
    limits = (_WITHOUT_A_NUMBER if r is None else math.ceil(ACCEPTED * r) for r in rounds)
    return max(limits, default=_WITHOUT_A_NUMBER)


def run_cell(
    cell: PublishedCell,
    task: Task,
    clients: FederatedData,
    evaluate: Callable[[Any], dict[str, float]] | Sequence[Callable[[Any], dict[str, float]]],
    *,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    num_rounds: int | None = None,
    eval_every: int | None = None,
    most_rates: int = MOST_RATES,
    race: bool = True,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
    workdir: str | pathlib.Path | None = None,
    go_on: Callable[[], bool] | None = None,
    allow_version_change: bool = False,
    layout: Callable[[Algorithm, FederatedData, int], Layout | None] | None = None,
) -> dict[str, Any]:
    """Finds a cell's best rate and its rounds to the target, or its curves at given rates.

    Args:
      cell: cell of a table or a figure.
      task: task of the cell's model.
      clients: clients of the cell's partition.
      evaluate: function that gives "test_accuracy"; further ones may give "full_train_loss".
      rates: rates to begin with, by default three likely ones; the grid widens by itself.
      seeds: seeds of the runs.
      num_rounds: maximum number of rounds; by default what is accepted, 1.25 times the paper's number.
      eval_every: rounds between evaluations; by default about a hundredth of the paper's number, or of a
        limit below that.
      most_rates: number of rates beyond which the grid is not widened.
      race: whether a seed's runs end once one of them has reached the cell's target; otherwise each
        makes all of its rounds.
      progress: whether to show a progress bar.
      report: function that receives lines of text.
      workdir: folder in which an interrupted cell continues.
      go_on: function called before each block of rounds, see `sweep`.
      allow_version_change: see `sweep`.
      layout: function from the algorithm, the clients and the number of runs to a layout or None.

    Returns:
      The record: the cell, its settings, its provenance, and a dict per run. For a cell run in parts,
      "seconds" sums all parts that were not killed, and the rest describes the last part.

    Raises:
      ValueError: a rate, a seed or a number of rounds is out of range, or the workdir is of other runs.
      DivergenceError: a loss is not finite before any training.
      UnfinishedError: `go_on` returned False; the same call continues.
    """
    rates, algorithm = rates or cell.starting_rates(), paper_algorithm(cell, task)
    chosen = None if layout is None else layout(algorithm, clients, len(rates) * len(seeds))
    started, earlier = time.perf_counter(), _seconds_so_far(workdir)
    origin = provenance()
    limit = default_limit(cell) if num_rounds is None else num_rounds
    if eval_every is None:
        eval_every = max(1, min(limit, cell.rounds or _WITHOUT_A_NUMBER) // _POINTS)
    try:
        runs = sweep_rates(
            algorithm,
            clients,
            rates=rates,
            seeds=seeds,
            num_rounds=limit,
            stop_at=cell.target if race else None,
            most_rates=most_rates,
            client_fraction=_client_fraction(cell, clients),
            evaluate=evaluate,
            eval_every=eval_every,
            # More devices do not help sequential SGD, where each update follows another.
            layout=Layout() if cell.algorithm == "sgd" else chosen,
            workdir=workdir,
            go_on=go_on,
            allow_version_change=allow_version_change,
            progress=progress,
            report=report,
        )
    except UnfinishedError:
        seconds = earlier + time.perf_counter() - started
        write_json(pathlib.Path(workdir) / _SECONDS, seconds)
        raise
    return {
        "cell": cell.identity(),
        "num_rounds": limit,
        "eval_every": eval_every,
        "most_rates": most_rates,
        "partition_seed": 0,
        "seconds": round(earlier + time.perf_counter() - started, 1),
        **origin,
        "runs": runs,
    }


def run_curves(
    number: int,
    cell: PublishedCell,
    task: Task,
    train: Dataset,
    test: Dataset,
    *,
    rates: Sequence[float],
    num_rounds: int | None = None,
    workdir: str | pathlib.Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Makes a figure's own runs of a cell.

    If the one rate of a figure of losses diverges, lower ones of the paper's grid are tried.

    Args:
      number: number of the figure.
      cell: cell of the figure.
      task: task of the cell's model.
      train: training rows.
      test: test rows.
      rates: rates, one run each.
      num_rounds: replaces the figure's number of rounds.
      workdir: folder in which interrupted runs continue.
      **settings: further arguments of `run_cell`, such as `seeds`.

    Returns:
      The record, as of `run_cell`.

    Raises:
      ValueError: a rate, a seed or a number of rounds is out of range.
      DivergenceError: in a figure of losses, even the lowest rate tried diverged.
      UnfinishedError: see `run_cell`.
    """
    clients = paper_clients(cell, train)
    num_rounds, eval_every = figure_rounds(number, cell, num_rounds)
    num_runs = len(rates) * len(settings.get("seeds", (0,)))
    evaluate = [evaluation(task, test, num_runs=num_runs)]
    loss = FIGURES[number].shows == LOSS
    if loss:
        evaluate.append(evaluation(task, train, num_runs=num_runs, prefix="full_train"))
    for attempt in range(_ATTEMPTS):
        record = run_cell(
            cell,
            task,
            clients,
            evaluate,
            rates=rates,
            num_rounds=num_rounds,
            eval_every=eval_every,
            most_rates=len(rates),
            race=False,
            workdir=None if workdir is None else pathlib.Path(workdir) / f"attempt{attempt}",
            **settings,
        )
        diverged = [run for run in record["runs"] if run["diverged"] is not None]
        if not (loss and diverged):
            return record
        rates = [neighbour(rate, 3, -1) for rate in rates]
    last = diverged[0]
    raise DivergenceError(
        f"training diverged in round {last['diverged']} even at rate {last['rate']:g}", last["diverged"]
    )


def _seconds_so_far(workdir: str | pathlib.Path | None) -> float:
    path = None if workdir is None else pathlib.Path(workdir) / _SECONDS
    return json.loads(path.read_text()) if path is not None and path.exists() else 0.0


def _client_fraction(cell: PublishedCell, clients: FederatedData) -> float:
    """Returns `C`, or the share that gives the workload's cohort size, at most all clients."""
    if cell.algorithm == "sgd":
        return 0.0  # trains on all clients' data, whichever are drawn
    if cell.workload.cohort_size is None:
        return cell.client_fraction
    return min(cell.workload.cohort_size / clients.num_clients, 1.0)
