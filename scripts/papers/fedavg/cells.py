"""Cells: settings of the FedAvg paper, what identifies their runs, and the rates to begin with.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629.
"""

import math
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_sim import checks
from fedjax_sim.reporting import expected_updates
from papers.fedavg.workloads import IID, WORKLOADS, Workload

USUAL_FRACTION = 0.1  # C wherever the paper does not vary it


class PublishedCell(NamedTuple):
    """One number of a table, or one curve of a figure.

    Attributes:
      table: number of the table in the paper; None for what only figures and the text show.
      model: name in `WORKLOADS`.
      partition: "iid" or "noniid", see `WORKLOADS`.
      client_fraction: `C`; 0 means one client per round. None for sequential SGD, and if the workload
        fixes the number of clients.
      local_epochs: `E`; None for sequential SGD, where a round is one update.
      batch_size: `B`, or `math.inf`.
      target: target test accuracy, or None.
      rounds: rounds as printed; None if the paper prints none or its run did not reach the target.
    """

    table: int | None
    model: str
    partition: str
    client_fraction: float | None
    local_epochs: int | None
    batch_size: float
    target: float | None
    rounds: int | None

    @property
    def workload(self) -> Workload:
        """The workload of the model."""
        return WORKLOADS[self.model]

    @property
    def algorithm(self) -> str:
        """One of "sgd", "fed_avg" and, for one step on each client's full gradient, "fed_sgd"."""
        if self.local_epochs is None:
            return "sgd"
        return "fed_sgd" if (self.local_epochs, self.batch_size) == (1, math.inf) else "fed_avg"

    @property
    def row(self) -> str:
        """The row in the table: C and B in table 1; elsewhere E and B, and C if it is not 0.1."""
        batch = f"B={batch_value(self.batch_size)}"
        if self.algorithm == "sgd":
            return f"SGD/{batch}"
        if self.table == 1:
            return f"C={self.client_fraction:g}/{batch}"
        usual = self.client_fraction in (None, USUAL_FRACTION)
        return f"{'' if usual else f'C={self.client_fraction:g}/'}E={self.local_epochs}/{batch}"

    @property
    def name(self) -> str:
        """The name of the runs, the same in every table that prints them and for every target."""
        cohort = self.workload.cohort_size
        setting = "sgd"
        if self.algorithm != "sgd":
            clients = f"C{self.client_fraction:g}" if cohort is None else f"m{cohort}"
            setting = f"{clients}-E{self.local_epochs}"
        return f"{self.model}-{self.partition}-{setting}-B{batch_value(self.batch_size)}"

    @property
    def updates(self) -> float | None:
        """`u`, a client's updates per round, as the paper counts; None if the data decides."""
        if self.algorithm == "sgd":
            return 1.0
        n, num_clients = self.workload.num_examples, self.workload.num_clients
        if num_clients is None:
            return None
        return expected_updates(self.local_epochs, self.batch_size, n, num_clients)

    @property
    def lr_decay(self) -> float:
        """The factor on the rate after each round."""
        return _LR_DECAY.get((self.model, self.algorithm), 1.0)

    def identity(self) -> dict[str, Any]:
        """Returns what was run, as JSON values."""
        identity = {
            "dataset": self.workload.dataset,
            "model": self.model,
            "partition": self.partition,
            "algorithm": self.algorithm,
            "C": self.client_fraction,
            "E": self.local_epochs,
            "B": batch_value(self.batch_size),
            "target": self.target,
        }
        if self.workload.cohort_size is not None:
            identity["clients_per_round"] = self.workload.cohort_size
        if self.lr_decay != 1:
            identity["lr_decay"] = self.lr_decay
        return identity

    def starting_rates(self) -> tuple[float, ...]:
        """Returns three ascending rates among which the best is likely to lie."""
        if self.model in _STARTING_RATES:
            return _STARTING_RATES[self.model][self.algorithm]
        if self.batch_size == math.inf and self.model == "cnn":
            return (0.1, 0.215, 0.464) if self.partition == IID else (0.0464, 0.1, 0.215)
        if self.batch_size == math.inf:
            return (0.215, 0.464, 1.0) if self.partition == IID else (0.1, 0.215, 0.464)
        if self.partition == IID:
            return (0.1, 0.215, 0.464)
        return (0.0464, 0.1, 0.215) if self.local_epochs == 1 else (0.0215, 0.0464, 0.1)


# Around the paper's rates: 1.47 for the LSTM, 18.0 and 9.0 for the word LSTM, and those of figure 4.
_STARTING_RATES = types.MappingProxyType(
    {
        "lstm": {"fed_sgd": (1.47, 3.16, 6.81), "fed_avg": (0.681, 1.47, 3.16)},
        "cifar": {
            "sgd": (0.0464, 0.1, 0.215),
            "fed_sgd": (0.45, 0.6, 0.7),
            "fed_avg": (0.05, 0.15, 0.25),
        },
        "word": {"fed_sgd": (8.35, 18.0, 38.8), "fed_avg": (4.18, 9.0, 19.4)},
    }
)
# From figure 4; the paper also tuned the decay of SGD but does not print it.
_LR_DECAY = types.MappingProxyType({("cifar", "fed_sgd"): 0.9934, ("cifar", "fed_avg"): 0.99})


def batch_value(batch_size: float) -> int | str:
    """Returns `B` as JSON: a whole number, or "inf"."""
    return "inf" if batch_size == math.inf else int(batch_size)


def choose_rows(cells: Sequence[PublishedCell], names: list[str] | None) -> list[PublishedCell]:
    """Returns the cells of the named rows, or all cells.

    Raises:
      ValueError: the table has no such row; the message lists its rows.
    """
    if names is None:
        return list(cells)
    rows = dict.fromkeys(cell.row for cell in cells)
    for name in names:
        checks.choose("row", name, rows)
    return [cell for cell in cells if cell.row in names]


def choose_target(cells: Sequence[PublishedCell], target: float | None) -> list[PublishedCell]:
    """Returns one cell per name, at this target or, by default, the hardest that the paper prints.

    At a target that the paper does not print, a cell has no number of rounds.
    """
    hardest = {cell.name: cell for cell in sorted(cells, key=lambda cell: cell.target)}
    at_target = {cell.name: cell for cell in cells if cell.target == target}
    names = dict.fromkeys(cell.name for cell in cells)
    if target is None:
        return [hardest[name] for name in names]
    other = {name: cell._replace(target=target, rounds=None) for name, cell in hardest.items()}
    return [at_target.get(name, other[name]) for name in names]
