r"""Sweeps an algorithm, FedAvg by default, over E, B and C, each combination at its best learning rate.

Without flags: 100 clients with two digits each, four combinations, three rates or more.

  python scripts/sweep.py
  python scripts/sweep.py --local_epochs=1,5,20 --batch_sizes=10,50,inf --client_lrs=0.0464,0.1,0.215
  python scripts/sweep.py --dataset=mnist --data_dir=DIR --partition=iid --target_accuracy=0.97 \
      --lr_grid=0.01:1:3 --client_fractions=0,0.1,1 --seeds=0,1 --num_rounds=1000

All rates and seeds of a combination (a cell) run in one compiled program. If the best rate lies at the
edge of the grid, further ones are tried. With a target, a cell ends once one of its curves has crossed
it. The workdir receives cells.jsonl (a row per run), table.md and table.csv (a row per cell),
curves.png, cells/NAME.json and cells/NAME.png. The same command on the same workdir continues an
interrupted sweep, and with another --plot_axis or link redraws all plots.
"""

import collections
import itertools
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags
from common import run, say, say_idle_lanes
from flags import devices, kinds, plot, training, workload
from papers import fedavg

import fedjax_sim as fs

for _module in (training, workload, plot, devices):
    flags.adopt_module_key_flags(_module)
_LOCAL_EPOCHS = flags.DEFINE_list("local_epochs", ["1", "5"], "E, epochs of a client in a round.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["10", "inf"], "B, examples in a local batch, or inf.")
_CLIENT_FRACTIONS = flags.DEFINE_list(
    "client_fractions", ["0.1"], "C; max(C * N, 1) clients take part in a round."
)
_CLIENT_LRS = flags.DEFINE_list(
    "client_lrs", ["0.0464", "0.1", "0.215"], "Client learning rates to begin with."
)
_LR_GRID = kinds.define(
    kinds.TEXT, "lr_grid", None, "first:last:per_decade in place of --client_lrs, such as 0.01:1:3."
)
_MOST_RATES = kinds.define(
    kinds.COUNT,
    "most_rates",
    13,
    "Maximum number of rates; while the best lies at the edge, the grid is widened up to it.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the runs; the clients' data is the same for all.")
_NUM_ROUNDS = kinds.define(kinds.COUNT, "num_rounds", 100, "R, maximum number of communication rounds.")
_EVAL_EVERY = kinds.define(kinds.COUNT, "eval_every", 1, "Rounds between evaluations.")
_TARGET_ACCURACY = kinds.define(
    kinds.TARGET,
    "target_accuracy",
    None,
    "Test accuracy that ends a cell, such as 0.97; without it the most accurate rate is the best.",
)
_WORKDIR = kinds.define(
    kinds.TEXT, "workdir", None, "Folder of the results; by default one in runs/ named after the flags."
)


class Cell(NamedTuple):
    """A combination of the settings that are compiled into the program."""

    client_fraction: float
    local_epochs: int
    batch_size: float

    @property
    def name(self) -> str:
        batch = fedavg.batch_value(self.batch_size)
        return f"C{self.client_fraction:g}-E{self.local_epochs}-B{batch}"

    @property
    def label(self) -> str:
        return self.name.replace("-", " ").replace("C", "C=").replace("E", "E=").replace("B", "B=")


class Checked(NamedTuple):
    """The values that follow from the flags alone.

    Attributes:
      cells: cells in the order of the flags.
      rates: rates to begin with.
      seeds: seeds of the runs.
      drawn_over: x-axis of plots, and its link.
      workdir: folder of the results.
    """

    cells: list[Cell]
    rates: list[float]
    seeds: list[int]
    drawn_over: dict[str, Any]
    workdir: pathlib.Path


def check() -> Checked:
    """Checks all flags together, before any data is read.

    Raises:
      ValueError: a list entry is not a number of its kind, two flags contradict each other, or the flags
        do not suit this machine.
    """
    cells = [
        Cell(*values)
        for values in itertools.product(
            kinds.numbers("client_fractions", _CLIENT_FRACTIONS.value, kinds.SHARE),
            kinds.numbers("local_epochs", _LOCAL_EPOCHS.value, kinds.COUNT),
            kinds.numbers("batch_sizes", _BATCH_SIZES.value, kinds.BATCH_SIZE),
        )
    ]
    names = [cell.name for cell in cells]
    twice = next((name for name, count in collections.Counter(names).items() if count > 1), None)
    if twice:
        raise ValueError(
            f"--client_fractions names the cell {twice} twice; wanted each once, to six digits"
        )
    rates, seeds = _rates(), kinds.numbers("seeds", _SEEDS.value, kinds.SEED)
    workload.check()
    works = [(cell.local_epochs, cell.batch_size, cell.client_fraction) for cell in cells]
    workload.check_training(rates, _NUM_ROUNDS.value, works)
    _check_algorithm(cells[0])
    devices.check()
    workdir = _WORKDIR.value or workload.default_workdir("sweep", _settings())
    kinds.check_folder("workdir", workdir)
    return Checked(cells, rates, seeds, plot.chosen(), pathlib.Path(workdir))


def _check_algorithm(cell: Cell) -> None:
    """Refuses an algorithm without E, B or C."""
    name, wanted = training.chosen().name, "wanted one such as fed_avg, fed_prox or scaffold"
    if not all(training.chosen().takes(each) for each in ("local_epochs", "batch_size")):
        raise ValueError(f"--algorithm={name} has no local epochs and batches to sweep; {wanted}")
    known = training.check(local_epochs=cell.local_epochs, batch_size=cell.batch_size, client_lr=1.0)
    if known.cohorts is not None:
        raise ValueError(f"--algorithm={name} draws cohorts of its own, not C of all clients; {wanted}")
    if known.model_of is None:
        raise ValueError(f"--algorithm={name} trains several models, and the table is of one; {wanted}")


def _algorithm(cell: Cell, clients, task) -> fs.Algorithm:
    return training.algorithm(
        task,
        clients.num_clients,
        local_epochs=cell.local_epochs,
        batch_size=cell.batch_size,
        client_lr=1.0,
    )


def _sweep() -> None:
    cells, rates, seeds, drawn_over, workdir = check()
    clients, test, task = workload.load(seeds[0])
    evaluate = fs.evaluator(task, test)
    _check_cells(cells, clients, task, evaluate, rates, seeds)
    most = max(cell.client_fraction for cell in cells)
    say_idle_lanes(fs.participation.cohort_size(clients.num_clients, most))
    if fs.runtime.is_first():
        say(f"{clients.describe()}\nWriting to {workdir}")
    records = fs.reporting.Records(workdir)
    config = _settings() | {"data_digest": clients.digest()}
    allow = devices.ALLOW_VERSION_CHANGE.value
    with fs.reporting.claimed_workdir(workdir, config, allow_version_change=allow):
        clock = _Clock(cells, clients.num_clients)
        for number, cell in enumerate(cells, 1):
            if (record := records.load(cell.name)) is not None:
                clock.skip(cell)
                records.forget(cell.name)  # left by a script killed just after saving the record
                say(f"{cell.label}: done before")
                _draw(cell, record, records, drawn_over)  # another axis, or killed before this
                continue
            say(f"{cell.label}, cell {number} of {len(cells)}{clock.left()}")
            kept = records.under_way(cell.name)
            record = _run(cell, clients, task, evaluate, rates, seeds, kept)
            records.save(cell.name, record)
            clock.finish(cell)
            _draw(cell, record, records, drawn_over)
            _write(workdir, records, cells, drawn_over)
        table = _write(workdir, records, cells, drawn_over)
    if fs.runtime.is_first():
        print(table, end="")


def _check_cells(cells, clients, task, evaluate, rates, seeds) -> None:
    """Checks every cell, so that a mistake in the last one shows before anything is written."""
    for cell in cells:
        fs.simulation.check_sweep(
            _algorithm(cell, clients, task),
            clients,
            hparams={"client_lr": rates},
            seeds=seeds,
            num_rounds=_NUM_ROUNDS.value,
            client_fraction=cell.client_fraction,
            evaluate=evaluate,
            eval_every=_EVAL_EVERY.value,
            stop_at=_TARGET_ACCURACY.value,
        )


def _run(cell, clients, task, evaluate, rates, seeds, kept) -> dict:
    started = time.perf_counter()
    algorithm = _algorithm(cell, clients, task)
    runs = fs.reporting.sweep_rates(
        algorithm,
        clients,
        rates=rates,
        seeds=seeds,
        num_rounds=_NUM_ROUNDS.value,
        stop_at=_TARGET_ACCURACY.value,
        most_rates=_MOST_RATES.value,
        client_fraction=cell.client_fraction,
        evaluate=evaluate,
        eval_every=_EVAL_EVERY.value,
        layout=devices.layout(algorithm, clients, num_runs=len(rates) * len(seeds)),
        workdir=kept,
        allow_version_change=devices.ALLOW_VERSION_CHANGE.value,
        progress=True,
        report=say,
    )
    n = int(clients.offsets[-1])
    updates = fs.reporting.expected_updates(cell.local_epochs, cell.batch_size, n, clients.num_clients)
    identity = {
        "C": cell.client_fraction,
        "E": cell.local_epochs,
        "B": fedavg.batch_value(cell.batch_size),
        "u": round(updates, 2),
        "target": _TARGET_ACCURACY.value,
    }
    seconds = round(time.perf_counter() - started, 1)
    return {"cell": identity, "seconds": seconds, **fs.reporting.provenance(), "runs": runs}


def _draw(cell: Cell, record: Mapping, records: fs.reporting.Records, drawn_over: dict) -> None:
    """Draws the curves of a cell's runs."""
    curves = {}
    for ran in record["runs"]:
        along, label = fs.reporting.x_axis(fs.reporting.run_history(ran), **drawn_over)
        curves[f"{ran['rate']:g}, seed {ran['seed']}"] = (along, ran["accuracy"])
    picture = records.path(cell.name).with_suffix(".png")
    fs.reporting.plot_curves({cell.label: curves}, picture, target=_TARGET_ACCURACY.value, xlabel=label)


def _write(
    workdir: pathlib.Path, records: fs.reporting.Records, cells: list[Cell], drawn_over: dict
) -> str:
    """Writes rows, tables and plots of the finished cells, in the order of the flags."""
    known = records.load_all()
    done = [(cell, known[cell.name]) for cell in cells if cell.name in known]
    columns = (
        "rate",
        "seed",
        "rounds_to_target",
        "bytes_to_target",
        "best_accuracy",
        "seconds",
        "diverged",
    )
    rows = [
        {name: record["cell"][name] for name in ("E", "B", "C")}
        | {name: run.get(name) for name in columns}  # older runs do not record their bytes
        for _, record in done
        for run in record["runs"]
    ]
    fs.reporting.write_lines(workdir / "cells.jsonl", rows)
    table = fs.reporting.sweep_table([record for _, record in done])
    text = fs.reporting.sweep_markdown(table)
    fs.reporting.write_text(workdir / "table.md", text)
    fs.reporting.write_csv(workdir / "table.csv", table)
    best = {}
    for cell, record in done:
        runs = record["runs"]
        best[cell.label] = fs.reporting.envelope(runs, runs[0]["seed"], **drawn_over)
    _, label = fs.reporting.x_axis(fs.reporting.run_history(runs[0]), **drawn_over)
    fs.reporting.plot_curves(
        {workload.title(training.chosen().name): best},
        workdir / "curves.png",
        target=_TARGET_ACCURACY.value,
        xlabel=label,
    )
    return text


class _Clock:
    """An estimate of the time left from the finished cells' work: examples at the limit of rounds."""

    def __init__(self, cells: list[Cell], num_clients: int):
        self._num_clients, self._started, self._done = num_clients, time.monotonic(), 0
        self._ahead = sum(map(self._work, cells))

    def _work(self, cell: Cell) -> int:
        return cell.local_epochs * fs.participation.cohort_size(self._num_clients, cell.client_fraction)

    def skip(self, cell: Cell) -> None:
        self._ahead -= self._work(cell)

    def finish(self, cell: Cell) -> None:
        self._done += self._work(cell)
        self._ahead -= self._work(cell)

    def left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._started) / self._done * self._ahead
        return f", about {seconds:.0f} s left in all if no cell ends early"


def _rates() -> list[float]:
    if _LR_GRID.value is None:
        return kinds.numbers("client_lrs", _CLIENT_LRS.value, kinds.RATE)
    if flags.FLAGS["client_lrs"].present:
        raise ValueError("--client_lrs and --lr_grid exclude each other; give one")
    parts = _LR_GRID.value.split(":")
    if len(parts) != 3:
        raise ValueError(f"--lr_grid={_LR_GRID.value}; wanted first:last:per_decade, such as 0.01:1:3")
    (low,), (high,) = (kinds.numbers("lr_grid", [part], kinds.POSITIVE_RATE) for part in parts[:2])
    (per_decade,) = kinds.numbers("lr_grid", parts[2:], kinds.COUNT)
    try:
        return fs.reporting.rate_grid(low, high, per_decade)
    except ValueError as error:
        raise ValueError(f"--lr_grid={_LR_GRID.value}: {error}") from None


def _settings() -> dict:
    return workload.settings(("workdir", *training.unused()))


if __name__ == "__main__":
    run("sweep.py", _sweep)
