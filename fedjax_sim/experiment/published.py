"""The numbers of the FedAvg paper's tables, and the learning rates to begin with.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, tables 1, 2
and 4: rounds to a target test accuracy on MNIST with 100 clients.
"""

import math
import types
from typing import Any, NamedTuple

from fedjax_sim.naming import choose

IID, NON_IID = "iid", "noniid"
CLIENTS, EXAMPLES = 100, 60_000  # K and n of MNIST in the paper


class PublishedCell(NamedTuple):
    """One number of a table.

    Attributes:
      table: its number in the paper.
      model: "2nn" or "cnn".
      partition: "iid", or "noniid": two shards of 300 examples sorted by label for each client.
      client_fraction: `C`; 0 means one client a round.
      local_epochs: `E`.
      batch_size: `B`, or `math.inf`.
      target: test accuracy.
      rounds: as printed, or None where the paper's run did not reach the target.
    """

    table: int
    model: str
    partition: str
    client_fraction: float
    local_epochs: int
    batch_size: float
    target: float
    rounds: int | None

    @property
    def is_fed_sgd(self) -> bool:
        """One step on the full gradient of each client: FedSGD, for any C."""
        return self.local_epochs == 1 and self.batch_size == math.inf

    @property
    def row(self) -> str:
        """Its row in the table: C and B in table 1, whose columns they are as well; else E and B."""
        first = f"C={self.client_fraction:g}" if self.table == 1 else f"E={self.local_epochs}"
        return f"{first}/B={batch_value(self.batch_size)}"

    @property
    def name(self) -> str:
        """Of what was run, whichever tables print it."""
        return "-".join(
            (
                self.model,
                self.partition,
                f"C{self.client_fraction:g}",
                f"E{self.local_epochs}",
                f"B{batch_value(self.batch_size)}",
            )
        )

    def identity(self) -> dict[str, Any]:
        """What was run, as JSON values."""
        return {
            "dataset": "mnist",
            "model": self.model,
            "partition": self.partition,
            "algorithm": "fed_sgd" if self.is_fed_sgd else "fed_avg",
            "C": self.client_fraction,
            "E": self.local_epochs,
            "B": batch_value(self.batch_size),
            "target": self.target,
        }

    def starting_rates(self) -> tuple[float, ...]:
        """Three neighbours of the paper's 10^(1/3) grid, where the best rate is likely to lie."""
        if self.batch_size == math.inf and self.model == "cnn":
            return (0.1, 0.215, 0.464) if self.partition == IID else (0.0464, 0.1, 0.215)
        if self.batch_size == math.inf:
            return (0.215, 0.464, 1.0) if self.partition == IID else (0.1, 0.215, 0.464)
        if self.partition == IID:
            return (0.1, 0.215, 0.464)
        return (0.0464, 0.1, 0.215) if self.local_epochs == 1 else (0.0215, 0.0464, 0.1)


def batch_value(batch_size: float) -> int | str:
    """`B` as JSON: a whole number, or "inf"."""
    return "inf" if batch_size == math.inf else int(batch_size)


def published(table: int, model: str) -> list[PublishedCell]:
    """The cells of one model's part of a table, in the paper's order: row by row, IID before non-IID.

    Raises:
      ValueError: there is no such table or part of it; the message lists those there are.
    """
    choose("table", str(table), {str(number): None for number, _ in PARTS})
    parts = {name: part for (number, name), part in PARTS.items() if number == int(table)}
    return choose(f"model of table {table}", model, parts)()


def choose_rows(cells: list[PublishedCell], names: list[str] | None) -> list[PublishedCell]:
    """The cells of the rows of these names, or all.

    Raises:
      ValueError: the table has no such row; the message lists those it has.
    """
    if names is None:
        return cells
    rows = dict.fromkeys(cell.row for cell in cells)
    for name in names:
        choose("row", name, rows)
    return [cell for cell in cells if cell.row in names]


def _table_1(model: str, target: float, epochs: int, rows: tuple) -> list[PublishedCell]:
    cells = []
    for fraction, *rounds in rows:
        columns = ((IID, math.inf), (IID, 10), (NON_IID, math.inf), (NON_IID, 10))
        for (partition, batch), count in zip(columns, rounds, strict=True):
            cells.append(PublishedCell(1, model, partition, fraction, epochs, batch, target, count))
    return cells


def _table_1_2nn() -> list[PublishedCell]:
    rows = (
        (0.0, 1455, 316, 4278, 3275),
        (0.1, 1474, 87, 1796, 664),
        (0.2, 1658, 77, 1528, 619),
        (0.5, None, 75, None, 443),
        (1.0, None, 70, None, 380),
    )
    return _table_1("2nn", 0.97, 1, rows)


def _table_1_cnn() -> list[PublishedCell]:
    rows = (
        (0.0, 387, 50, 1181, 956),
        (0.1, 339, 18, 1100, 206),
        (0.2, 337, 18, 978, 200),
        (0.5, 164, 18, 1067, 261),
        (1.0, 246, 16, None, 97),
    )
    return _table_1("cnn", 0.99, 5, rows)


def _by_updates(table: int, model: str, target: float, rows: tuple) -> list[PublishedCell]:
    """Tables 2 and 4: C = 0.1, one row for each E and B."""
    return [
        PublishedCell(table, model, partition, 0.1, epochs, batch, target, count)
        for epochs, batch, *rounds in rows
        for partition, count in zip((IID, NON_IID), rounds, strict=True)
    ]


def _table_2() -> list[PublishedCell]:
    rows = (
        (1, math.inf, 626, 483),
        (5, math.inf, 179, 1000),
        (1, 50, 65, 600),
        (20, math.inf, 234, 672),
        (1, 10, 34, 350),
        (5, 50, 29, 334),
        (20, 50, 32, 426),
        (5, 10, 20, 229),
        (20, 10, 18, 173),
    )
    return _by_updates(2, "cnn", 0.99, rows)


def _table_4() -> list[PublishedCell]:
    rows = (
        (1, math.inf, 1468, 1817),
        (10, math.inf, 156, 1100),
        (1, 50, 144, 1183),
        (20, math.inf, 92, 957),
        (1, 10, 92, 831),
        (10, 50, 45, 881),
        (20, 50, 39, 835),
        (10, 10, 34, 497),
        (20, 10, 32, 738),
    )
    return _by_updates(4, "2nn", 0.97, rows)


# Table and model -> its cells.
PARTS = types.MappingProxyType(
    {
        (1, "2nn"): _table_1_2nn,
        (1, "cnn"): _table_1_cnn,
        (2, "cnn"): _table_2,
        (4, "2nn"): _table_4,
    }
)
