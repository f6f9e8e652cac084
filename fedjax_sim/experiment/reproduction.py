"""Runs the cells of the FedAvg paper's MNIST tables."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import optax

from fedjax_sim.algorithms import fed_avg, fed_sgd
from fedjax_sim.base import Algorithm, Task
from fedjax_sim.data import Dataset, FederatedData, federate, iid, shards
from fedjax_sim.experiment.protocol import sweep_rates
from fedjax_sim.experiment.published import CLIENTS, IID, PARTS, PublishedCell, published
from fedjax_sim.experiment.records import provenance
from fedjax_sim.experiment.tables import ACCEPTED

_WITHOUT_A_NUMBER = 2000  # rounds at most where the paper's run did not reach the target
_POINTS = 100  # of a curve, up to the paper's number


def paper_clients(train: Dataset, partition: str, seed: int = 0) -> FederatedData:
    """MNIST's 100 clients: IID, or two shards each of the examples sorted by label.

    Args:
      train: MNIST's training set.
      partition: "iid" or "noniid".
      seed: of the partition.

    Raises:
      ValueError: there are fewer rows than clients or shards.
    """
    if partition == IID:
        return federate(train, iid(num_clients=CLIENTS, seed=seed))
    return federate(train, shards(num_clients=CLIENTS, shards_per_client=2, seed=seed))


def paper_algorithm(cell: PublishedCell, task: Task) -> Algorithm:
    """FedSGD, or FedAvg with the cell's E and B; its rate is the hyper-parameter "client_lr"."""
    if cell.is_fed_sgd:
        return fed_sgd(task, optax.sgd)
    return fed_avg(task, optax.sgd, local_epochs=cell.local_epochs, batch_size=cell.batch_size)


def default_limit(cell: PublishedCell) -> int:
    """Rounds after which a cell counts as missed, in every table that prints it."""
    twins = (twin for table, model in PARTS for twin in published(table, model))
    rounds = [twin.rounds for twin in twins if twin.name == cell.name]
    return _WITHOUT_A_NUMBER if None in rounds else math.ceil(ACCEPTED * max(rounds))


def run_cell(
    cell: PublishedCell,
    task: Task,
    clients: FederatedData,
    evaluate: Callable[[Any], dict[str, float]],
    *,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    num_rounds: int | None = None,
    eval_every: int | None = None,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Finds a cell's best rate and its rounds to the target.

    Args:
      cell: of a table.
      task: of the cell's model.
      clients: of the cell's partition.
      evaluate: gives "test_accuracy".
      rates: to begin with; the grid widens by itself. By default three likely ones.
      seeds: of the runs.
      num_rounds: the limit; by default what is accepted, 1.25 times the paper's number.
      eval_every: by default about a hundredth of the paper's number.
      progress: shows a bar.
      report: receives lines of text.

    Returns:
      The record: the cell, its settings, where it came from, and a dict per run.

    Raises:
      ValueError: a rate, a seed or a number of rounds is out of its range.
      DivergenceError: a loss is not a finite number before any training.
    """
    started = time.perf_counter()
    limit = default_limit(cell) if num_rounds is None else num_rounds
    every = max(1, (cell.rounds or _WITHOUT_A_NUMBER) // _POINTS) if eval_every is None else eval_every
    runs = sweep_rates(
        paper_algorithm(cell, task),
        clients,
        rates=rates or cell.starting_rates(),
        seeds=seeds,
        num_rounds=limit,
        stop_at=cell.target,
        client_fraction=cell.client_fraction,
        evaluate=evaluate,
        eval_every=every,
        progress=progress,
        report=report,
    )
    return {
        "cell": cell.identity(),
        "num_rounds": limit,
        "eval_every": every,
        "partition_seed": 0,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(),
        "runs": runs,
    }
