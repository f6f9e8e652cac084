"""The numbers that the FedAvg paper prints.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, tables 1 to
4 and the end of section 3: rounds to a target test accuracy.
"""

import math
import types

from fedjax_sim import checks
from papers.fedavg.cells import USUAL_FRACTION, PublishedCell
from papers.fedavg.workloads import IID, NON_IID


def published(table: int | None, model: str) -> list[PublishedCell]:
    """Returns one model's cells of a table in the paper's order: row by row, IID before non-IID.

    Args:
      table: number of the table; None for the numbers that only the text prints.
      model: name of the model.

    Raises:
      ValueError: the table or its part is unknown; the message lists the known ones.
    """
    if table is not None:
        checks.choose(
            "table", str(table), {str(number): None for number, _ in PARTS if number is not None}
        )
    parts = {name: part for (number, name), part in PARTS.items() if number == table}
    return checks.choose(
        "model of " + ("the text" if table is None else f"table {table}"), model, parts
    )()


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
    """Returns the cells of table 2 or 4, with one row for each E and B."""
    return [
        PublishedCell(table, model, partition, USUAL_FRACTION, epochs, batch, target, count)
        for epochs, batch, *rounds in rows
        for partition, count in zip((IID, NON_IID), rounds, strict=True)
    ]


def _table_2_cnn() -> list[PublishedCell]:
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


def _table_2_lstm() -> list[PublishedCell]:
    rows = (
        (1, math.inf, 2488, 3906),
        (1, 50, 1635, 549),
        (5, math.inf, 613, 597),
        (1, 10, 460, 164),
        (5, 50, 401, 152),
        (5, 10, 192, 41),
    )
    return _by_updates(2, "lstm", 0.54, rows)


def _table_3() -> list[PublishedCell]:
    rows = (
        (None, None, 100, 18_000, 31_000, 99_000),
        (USUAL_FRACTION, 1, math.inf, 3750, 6600, None),
        (USUAL_FRACTION, 5, 50, 280, 630, 2000),
    )
    return [
        PublishedCell(3, "cifar", IID, *setting, target, count)
        for *setting, easy, middle, hard in rows
        for target, count in ((0.8, easy), (0.82, middle), (0.85, hard))
    ]


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


def _text() -> list[PublishedCell]:
    rows = ((1, math.inf, 820), (1, 8, 35))
    return [PublishedCell(None, "word", NON_IID, None, *setting, 0.105, n) for *setting, n in rows]


# (table, model) -> its cells. A table's first model is the default.
PARTS = types.MappingProxyType(
    {
        (1, "2nn"): _table_1_2nn,
        (1, "cnn"): _table_1_cnn,
        (2, "cnn"): _table_2_cnn,
        (2, "lstm"): _table_2_lstm,
        (3, "cifar"): _table_3,
        (4, "2nn"): _table_4,
        (None, "word"): _text,
    }
)
