"""A cell: one setting of the FedAvg paper, what identifies its runs and the rates to begin with.

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
      table: its number in the paper; None for what only figures and the text show.
      model: a name in `WORKLOADS`.
      partition: "iid" or "noniid", see `WORKLOADS`.
      client_fraction: `C`; 0 means one client a round. None of sequential SGD, and where the workload
        fixes the number of clients.
      local_epochs: `E`; None of sequential SGD, of which a round is one update.
      batch_size: `B`, or `math.inf`.
      target: test accuracy, or None.
      rounds: as printed, or None where the paper prints none or its run did not reach the target.
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
        """What the model learns from."""
        return WORKLOADS[self.model]

    @property
    def algorithm(self) -> str:
        """One of "sgd", "fed_avg" and, with one step on each client's full gradient, "fed_sgd"."""
        if self.local_epochs is None:
            return "sgd"
        return "fed_sgd" if (self.local_epochs, self.batch_size) == (1, math.inf) else "fed_avg"

    @property
    def row(self) -> str:
        """Its row in the table: C and B in table 1; elsewhere E and B, and C where it is not 0.1."""
        batch = f"B={batch_value(self.batch_size)}"
        if self.algorithm == "sgd":
            return f"SGD/{batch}"
        if self.table == 1:
            return f"C={self.client_fraction:g}/{batch}"
        usual = self.client_fraction in (None, USUAL_FRACTION)
        return f"{'' if usual else f'C={self.client_fraction:g}/'}E={self.local_epochs}/{batch}"

    @property
    def name(self) -> str:
        """Of what was run, whichever tables print it and for whichever of their targets."""
        cohort = self.workload.cohort_size
        setting = "sgd"
        if self.algorithm != "sgd":
            clients = f"C{self.client_fraction:g}" if cohort is None else f"m{cohort}"
            setting = f"{clients}-E{self.local_epochs}"
        return f"{self.model}-{self.partition}-{setting}-B{batch_value(self.batch_size)}"

    @property
    def updates(self) -> float | None:
        """`u`, a client's updates in a round, as the paper counts; None where the data decides."""
        if self.algorithm == "sgd":
            return 1.0
        n, num_clients = self.workload.num_examples, self.workload.num_clients
        if num_clients is None:
            return None
        return expected_updates(self.local_epochs, self.batch_size, n, num_clients)

    @property
    def lr_decay(self) -> float:
        """What multiplies the rate after each round."""
        return _LR_DECAY.get((self.model, self.algorithm), 1.0)

    def identity(self) -> dict[str, Any]:
        """What was run, as JSON values."""
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
        """Three rates, ascending, among which the best is likely to lie."""
        if self.model in _STARTING_RATES:
            return _STARTING_RATES[self.model][self.algorithm]
        if self.batch_size == math.inf and self.model == "cnn":
            return (0.1, 0.215, 0.464) if self.partition == IID else (0.0464, 0.1, 0.215)
        if self.batch_size == math.inf:
            return (0.215, 0.464, 1.0) if self.partition == IID else (0.1, 0.215, 0.464)
        if self.partition == IID:
            return (0.1, 0.215, 0.464)
        return (0.0464, 0.1, 0.215) if self.local_epochs == 1 else (0.0215, 0.0464, 0.1)


# Around those that the paper names: 1.47 for the LSTM, 18.0 and 9.0 for the word LSTM; and figure 4's.
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
# Figure 4's; the paper tuned that of SGD as well and does not print it.
_LR_DECAY = types.MappingProxyType({("cifar", "fed_sgd"): 0.9934, ("cifar", "fed_avg"): 0.99})


def batch_value(batch_size: float) -> int | str:
    """`B` as JSON: a whole number, or "inf"."""
    return "inf" if batch_size == math.inf else int(batch_size)


def choose_rows(cells: Sequence[PublishedCell], names: list[str] | None) -> list[PublishedCell]:
    """The cells of the rows of these names, or all.

    Raises:
      ValueError: the table has no such row; the message lists those it has.
    """
    if names is None:
        return list(cells)
    rows = dict.fromkeys(cell.row for cell in cells)
    for name in names:
        checks.choose("row", name, rows)
    return [cell for cell in cells if cell.row in names]


def choose_target(cells: Sequence[PublishedCell], target: float | None) -> list[PublishedCell]:
    """One cell for each name, at this target or, by default, the hardest that the paper prints.

    At a target that the paper does not print, a cell has no number of rounds.
    """
    hardest = {cell.name: cell for cell in sorted(cells, key=lambda cell: cell.target)}
    at_target = {cell.name: cell for cell in cells if cell.target == target}
    names = dict.fromkeys(cell.name for cell in cells)
    if target is None:
        return [hardest[name] for name in names]
    other = {name: cell._replace(target=target, rounds=None) for name, cell in hardest.items()}
    return [at_target.get(name, other[name]) for name in names]
