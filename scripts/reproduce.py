"""Runs cells and figures of the FedAvg paper and prints the results beside the paper's.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
Every cell runs at several learning rates, from likely ones outwards until the best lies inside the
grid, and ends once one of its curves has crossed the target, or at 1.25 times the paper's rounds.

  python scripts/reproduce.py --data_dir=DIR --table=4 --partition=iid
  python scripts/reproduce.py --data_dir=DIR --table=2 --rows=E=1/B=10,E=5/B=10 --seeds=0,1
  python scripts/reproduce.py --data_dir=DIR --table=2 --model=lstm --client_lrs=1.47 --most_rates=1
  python scripts/reproduce.py --data_dir=DIR --figure=4 --rounds_limit=30
  python scripts/reproduce.py --data_dir=FILE.jsonl.xz --figure=5 --target=0.08
  python scripts/reproduce.py --data_dir=DIR --table=2 --time_budget_s=600
  python scripts/reproduce.py --report

DIR holds the files of MNIST, Shakespeare (table 2 with --model=lstm, figure 3) or CIFAR-10 (table 3,
figures 4 and 9); FILE holds messages by author (figures 5 and 10). Figures 2, 5 and 7 draw the curves
of table 2, of the rounds counted in the text, and of table 4. The others make runs of their own, for
--rounds_limit rounds: 6 and 8 follow the loss on all training data; 3, 4, 9 and 10 the test accuracy.
The workdir receives cells/NAME.json for each finished cell, tables.md, figureN.png and, with --report,
report.html: one page of everything run so far. To run a finished cell again, delete its file.

While a cell is under way, under_way/NAME keeps its rows and checkpoints: the same command continues it,
and a killed script loses only seconds. A table can thus be filled in parts. With --time_budget_s, no
block of rounds begins after that many seconds from the start, loading and compiling included; the script
then says what is left and ends with status 75. Repeat the command until it says "all done", with status
0. However short the time, each part gets a little further.
"""

import contextlib
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from absl import flags
from common import run, say
from flags import (
    devices,
    kinds,
    time_budget,  # before the imports that take seconds
)
from papers import fedavg

import fedjax_sim as fs

flags.adopt_module_key_flags(time_budget)
flags.adopt_module_key_flags(devices)
_TABLE = kinds.define(kinds.whole(1, 4), "table", None, "Table to run, 1 to 4.")
_FIGURE = kinds.define(kinds.whole(1, 10), "figure", None, "Figure to run, 1 to 10.")
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Model: 2nn (the default) or cnn in table 1; cnn (the default) or lstm in table 2 and figure 2.",
)
_PARTITION = flags.DEFINE_enum("partition", "both", ["iid", "noniid", "both"], "Partition.")
_ROWS = flags.DEFINE_list(
    "rows",
    None,
    "Rows such as E=1/B=10, in table 1 C=0.1/B=inf, for sequential SGD SGD/B=100; all by default.",
)
_RATES = flags.DEFINE_list(
    "client_lrs",
    None,
    "Learning rates to begin with; by default three likely ones per cell. For figures with own runs, "
    "all rates; by default 1.47 in figure 3, three in figure 4, otherwise the cell's best, or the "
    "middle likely one before the cell has run. Figures 6 and 8 need exactly one.",
)
_MOST_RATES = kinds.define(
    kinds.COUNT,
    "most_rates",
    13,
    "Maximum number of rates; while the best lies at the edge, the grid is widened up to it.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the runs; the clients' data is the same for all.")
_TARGET = kinds.define(
    kinds.TARGET,
    "target",
    None,
    "Test accuracy that ends a cell; by default the paper's (in table 3 the last).",
)
_ROUNDS_LIMIT = kinds.define(
    kinds.COUNT,
    "rounds_limit",
    None,
    "Maximum number of rounds; by default 1.25 times the paper's, the most accepted. For figures with "
    "runs of their own, all rounds; by default 2,000 in figure 4, 820 in figure 10 and otherwise "
    "30; in figure 9 for E=5/B=50, and the other rows compute as many gradients.",
)
_REPORT = flags.DEFINE_bool("report", False, "Write report.html from everything run so far.")
_DATA_DIR = kinds.define(
    kinds.TEXT,
    "data_dir",
    None,
    "Folder of the data set's files; for messages by author, the folder or the file.",
)
_WORKDIR = kinds.define(kinds.TEXT, "workdir", "runs/reproduce", "Folder of the results.")


class Checked(NamedTuple):
    """The values that follow from the flags alone.

    Attributes:
      named: name of a cell's runs -> the cell.
      own_runs: whether they belong to a figure that makes runs of its own.
      rates: rates to begin with, if given.
      seeds: seeds of the runs.
    """

    named: dict[str, fedavg.PublishedCell]
    own_runs: bool
    rates: list[float] | None
    seeds: list[int]


def check() -> Checked:
    """Checks all flags together, before any data is read.

    Raises:
      ValueError: a list entry is not a number of its kind, or two flags contradict each other.
    """
    wanted = [value for value in (_TABLE.value, _FIGURE.value) if value is not None]
    if len(wanted) != 1 and not (_REPORT.value and not wanted):
        raise ValueError("wanted one of --table, --figure and --report (see --help)")
    figure = fedavg.FIGURES.get(_FIGURE.value)
    own_runs = figure is not None and figure.shows != fedavg.BEST
    rates = (
        None if _RATES.value is None else kinds.numbers("client_lrs", _RATES.value, kinds.POSITIVE_RATE)
    )
    seeds = kinds.numbers("seeds", _SEEDS.value, kinds.SEED)
    _check_together(figure, own_runs, rates)
    named = {
        fedavg.figure_record(_FIGURE.value, cell) if own_runs else cell.name: cell
        for cell in _cells(own_runs)
    }
    if own_runs and _ROUNDS_LIMIT.value is not None:
        _check_rounds(named.values())
    devices.check()
    kinds.check_folder("workdir", _WORKDIR.value)
    if (pathlib.Path(_WORKDIR.value) / "config.json").exists():
        raise ValueError(
            f"--workdir={_WORKDIR.value} belongs to a run of another script; choose another workdir"
        )
    return Checked(named, own_runs, rates, seeds)


def _reproduce() -> None:
    named, own_runs, rates, seeds = check()
    workdir, records = pathlib.Path(_WORKDIR.value), fs.reporting.Records(_WORKDIR.value)
    asked = {"rates": rates, "seeds": seeds if flags.FLAGS["seeds"].present else None}
    with contextlib.ExitStack() as stack:
        if named or _FIGURE.value == 1:  # a report alone may be written while cells run
            stack.enter_context(records.locked())
        if _FIGURE.value == 1:
            _average_two_models(records)
        elif named:
            try:
                (_run_figure if own_runs else _run)(named, records, seeds, asked)
            except fs.simulation.UnfinishedError as reason:
                left = [name for name in named if records.load(name) is None]
                time_budget.leave_the_rest(reason, len(named), left)
            say("all done")
    drawn = _write(workdir, records)
    if _FIGURE.value is not None:
        say(f"wrote {drawn[_FIGURE.value]}")
    if _TABLE.value is not None:
        _print_tables(named, records.load_all())
    if _REPORT.value:
        page = fedavg.render_page(records.load_all(), drawn)
        fs.reporting.write_text(workdir / "report.html", page)
        say(f"wrote {workdir / 'report.html'}")


def _check_together(figure: fedavg.Figure | None, own_runs: bool, rates: list[float] | None) -> None:
    """Refuses flags that contradict each other."""
    if _ROWS.value is not None and not _ROWS.value:
        raise ValueError("--rows is empty; wanted row names with commas between, or leave it out")
    time_budget.check()
    if time_budget.TIME_BUDGET_S.value is not None and _FIGURE.value == 1:
        raise ValueError("--time_budget_s is given; figure 1 is made in one go, so leave it out")
    if _TARGET.value is not None and (own_runs or _FIGURE.value == 1):
        raise ValueError(f"--target={_TARGET.value}; figure {_FIGURE.value} has no target; leave it out")
    if own_runs and figure.shows == fedavg.LOSS and rates is not None and len(rates) != 1:
        raise ValueError(f"--client_lrs={','.join(_RATES.value)}; figures 6 and 8 need one rate")


def _check_rounds(cells: Iterable[fedavg.PublishedCell]) -> None:
    """Refuses too large a number of rounds for a row of a figure that scales it."""
    limit = _ROUNDS_LIMIT.value
    most = max(fedavg.figure_rounds(_FIGURE.value, cell, limit)[0] for cell in cells)
    if most > kinds.LARGEST:
        raise ValueError(
            f"--rounds_limit={limit} makes {most} rounds of one row; wanted at most {kinds.LARGEST}"
        )


def _cells(own_runs: bool) -> list[fedavg.PublishedCell]:
    """Returns the cells that the flags ask for."""
    if _TABLE.value is not None:
        models = [model for number, model in fedavg.PARTS if number == _TABLE.value]
        cells = fedavg.published(_TABLE.value, _MODEL.value or next(iter(models), ""))
    elif _FIGURE.value is not None and _FIGURE.value != 1:
        cells = fedavg.figure_cells(_FIGURE.value, _MODEL.value)
    else:
        return []
    try:
        cells = fedavg.choose_rows(cells, _ROWS.value)
    except ValueError as error:
        raise ValueError(f"--rows={','.join(_ROWS.value)}: {error}") from None
    if not own_runs:
        cells = fedavg.choose_target(cells, _TARGET.value)
    chosen = [cell for cell in cells if _PARTITION.value in (cell.partition, "both")]
    if not chosen:
        known = ", ".join(sorted({cell.partition for cell in cells}))
        raise ValueError(f"--partition={_PARTITION.value}; wanted {known}, as the cells have no other")
    return chosen


def _write(workdir: pathlib.Path, records: fs.reporting.Records) -> dict[int, pathlib.Path]:
    """Writes the tables and figures of everything run so far, and returns the figures' paths."""
    known = records.load_all()
    if not known:
        raise ValueError(f"nothing has been run in {workdir} yet; begin with --table or --figure")
    fs.reporting.write_text(workdir / "tables.md", fedavg.render_tables(known))
    drawn = {n: fedavg.draw_figure(n, known, workdir) for n in (1, *fedavg.FIGURES)}
    return {n: path for n, path in drawn.items() if path}


def _print_tables(names: Collection[str], known) -> None:
    """Prints the rows of these cells, for every target to which they ran."""
    for title, part, rows in fedavg.tables_that_ran(known):
        shown = [row for cell, row in zip(part, rows, strict=True) if cell.name in names]
        if shown and part[0].table == _TABLE.value and _TARGET.value in (None, part[0].target):
            say(title)
            print(fs.reporting.markdown(shown), end="", flush=True)


def _missing(asked: Mapping[str, Mapping[str, Any]], records) -> list[str]:
    """Returns the names that have not run yet, and reports the others.

    Args:
      asked: name of a cell's runs -> settings that the flags ask for, None where they do not.
      records: records of the workdir.

    Raises:
      ValueError: a cell ran with other settings than the flags ask for.
    """
    missing = []
    for name, settings in asked.items():
        record = records.load(name)
        if record is None:
            missing.append(name)
            continue
        ran = {
            "rates": {run["rate"] for run in record["runs"]},
            "seeds": {run["seed"] for run in record["runs"]},
            "num_rounds": {record.get("num_rounds")},
            "target": {record["cell"].get("target")},
        }
        for what, wanted in settings.items():
            wanted = wanted if isinstance(wanted, list) or wanted is None else [wanted]
            if wanted is not None and not set(wanted) <= ran[what]:
                raise ValueError(
                    f"{name} was run with {what} {sorted(ran[what])}, but {wanted} is asked for; delete "
                    f"{records.path(name)} to run it again, or choose another workdir"
                )
        say(f"{name}: done before, see {records.path(name)}")
        records.forget(name)  # left by a script killed just after saving the record
    return missing


def _run(named, records, seeds, asked) -> None:
    """Runs cells to their targets."""
    asked = asked | {"num_rounds": _ROUNDS_LIMIT.value, "target": _TARGET.value}
    missing = _missing(dict.fromkeys(named, asked), records)
    if not missing:
        return
    going = time_budget.Budget()
    train, test, task = _paper_data(named[missing[0]].model)
    for number, name in enumerate(going.while_there_is_time(missing), 1):
        cell = named[name]
        say(f"{name}, cell {number} of {len(missing)}; the paper's rounds: {cell.rounds}")
        rates = asked["rates"] or cell.starting_rates()
        record = fedavg.run_cell(
            cell,
            task,
            fedavg.paper_clients(cell, train),
            fedavg.evaluation(task, test, num_runs=len(rates) * len(seeds)),
            rates=rates,
            seeds=seeds,
            num_rounds=_ROUNDS_LIMIT.value,
            most_rates=_MOST_RATES.value,
            workdir=records.under_way(name),
            go_on=going,
            layout=devices.layout,
            allow_version_change=devices.ALLOW_VERSION_CHANGE.value,
            progress=True,
            report=say,
        )
        _save(records, name, record, test)
        say(", ".join(map(_outcome, fs.reporting.best_of_each_seed(record["runs"]))))


def _run_figure(named, records, seeds, asked) -> None:
    """Makes a figure's own runs."""
    number, limit = _FIGURE.value, _ROUNDS_LIMIT.value
    asked_of = {}
    for name, cell in named.items():
        rounds = None if limit is None else fedavg.figure_rounds(number, cell, limit)[0]
        asked_of[name] = asked | {"num_rounds": rounds}
    missing = _missing(asked_of, records)
    if not missing:
        return
    going = time_budget.Budget()
    train, test, task = _paper_data(named[missing[0]].model)
    for name in going.while_there_is_time(missing):
        say(name)
        cell = named[name]
        rates = asked["rates"] or fedavg.figure_rates(number, cell, records.load(cell.name))
        record = fedavg.run_curves(
            number,
            cell,
            task,
            train,
            test,
            rates=rates,
            num_rounds=limit,
            seeds=seeds,
            workdir=records.under_way(name),
            go_on=going,
            layout=devices.layout,
            allow_version_change=devices.ALLOW_VERSION_CHANGE.value,
            progress=True,
        )
        _save(records, name, record, test)


def _paper_data(model: str) -> tuple[fs.data.Dataset, fs.data.Dataset, fs.Task]:
    return fedavg.paper_data(model, _DATA_DIR.value, **devices.unpacking())


def _average_two_models(records) -> None:
    if _missing({fedavg.FIGURE_1_RECORD: {}}, records):
        train, _, task = _paper_data("2nn")
        records.save(fedavg.FIGURE_1_RECORD, fedavg.average_two_models(task, train))


def _save(records, name: str, record: dict, test: fs.data.Dataset) -> None:
    records.save(name, {"test_rows": len(test)} | record)
    _write(pathlib.Path(_WORKDIR.value), records)


def _outcome(best: fs.reporting.Best) -> str:
    reached = f"not reached, best accuracy {best.accuracy:.4f}"
    if best.rounds is not None:
        reached = f"{best.rounds:.1f} rounds"
    return f"seed {best.seed}: {reached} at rate {best.rate:g}"


if __name__ == "__main__":
    run("reproduce.py", _reproduce)
