"""Runs cells of the FedAvg paper's tables and prints ours beside the paper's.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
Every cell is run at several learning rates, from likely ones outwards until the best lies inside the
grid, and ends when one of its curves has crossed the target, or at 1.25 times the paper's rounds.

  python scripts/reproduce.py --data_dir=DIR --table=4 --partition=iid
  python scripts/reproduce.py --data_dir=DIR --table=2 --rows=E=1/B=10,E=5/B=10 --seeds=0,1
  python scripts/reproduce.py --data_dir=DIR --figure=1
  python scripts/reproduce.py --report

DIR holds MNIST's four files. The workdir receives cells/NAME.json for each finished cell, tables.md
and, with --report, report.html, one page of everything that has been run so far. A finished cell is
not run again: delete its file if you want it to be; an interrupted one starts anew.
"""

import pathlib

from absl import flags
from common import numbers, run, say

import fedjax_sim as fs

_TABLE = flags.DEFINE_integer("table", None, "1, 2 or 4.")
_MODEL = flags.DEFINE_string(
    "model", None, "2nn or cnn, of table 1; tables 2 and 4 have but one, which is the default."
)
_PARTITION = flags.DEFINE_enum("partition", "both", ["iid", "noniid", "both"], "Whose data.")
_ROWS = flags.DEFINE_list("rows", None, "Such as E=1/B=10, in table 1 C=0.1/B=inf; all by default.")
_RATES = flags.DEFINE_list(
    "client_lrs", None, "Learning rates to begin with; by default three likely ones for each cell."
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the runs; the clients' data is the same for all.")
_ROUNDS_LIMIT = flags.DEFINE_integer(
    "rounds_limit", None, "Rounds at most; by default 1.25 times the paper's, which is what is accepted."
)
_REPORT = flags.DEFINE_bool("report", False, "Write report.html from what has been run so far.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "Where results go.")

_MODELS = {"2nn": fs.models.mnist_2nn, "cnn": fs.models.mnist_cnn}


def _reproduce() -> None:
    if _TABLE.value is None and not _REPORT.value:
        raise ValueError("nothing to do; wanted --table, --figure or --report (see --help)")
    cells = [] if _TABLE.value is None else _cells(_TABLE.value)
    rates = None if _RATES.value is None else numbers("client_lrs", _RATES.value, float)
    seeds = numbers("seeds", _SEEDS.value, int)
    records = fs.experiment.Records(_WORKDIR.value)
    workdir = pathlib.Path(_WORKDIR.value)
    with records.locked():
        if cells:
            _run(cells, records, rates, seeds)
            known = records.load_all()
            fs.experiment.write_text(workdir / "tables.md", fs.experiment.render_tables(known))
            part = fs.experiment.published(_TABLE.value, cells[0].model)  # whole, for its first row
            rows = fs.experiment.reproduction_table(part, known)
            chosen = [row for cell, row in zip(part, rows, strict=True) if cell in cells]
            print(fs.experiment.reproduction_markdown(chosen), end="")


def _cells(table: int) -> list[fs.experiment.PublishedCell]:
    models = [model for number, model in fs.experiment.PARTS if number == table]
    model = _MODEL.value or (models[0] if len(models) == 1 else "2nn")
    cells = fs.experiment.choose_rows(fs.experiment.published(table, model), _ROWS.value)
    return [cell for cell in cells if _PARTITION.value in (cell.partition, "both")]


def _run(cells, records, rates, seeds) -> None:
    missing = [cell for cell in cells if records.load(cell.name) is None]
    for cell in cells:
        if cell not in missing:
            say(f"{cell.name}: done before, see {records.path(cell.name)}")
    if not missing:
        return
    train, test = fs.data.load("mnist", data_dir=_DATA_DIR.value)
    task = _MODELS[missing[0].model]()
    evaluate = fs.accuracy(task, test, layout=fs.Layout())
    for number, cell in enumerate(missing, 1):
        say(f"{cell.name}, cell {number} of {len(missing)}; the paper's rounds: {cell.rounds}")
        record = fs.experiment.run_cell(
            cell,
            task,
            fs.experiment.paper_clients(train, cell.partition),
            evaluate,
            rates=rates,
            seeds=seeds,
            num_rounds=_ROUNDS_LIMIT.value,
            progress=True,
            report=say,
        )
        records.save(cell.name, record)
        say(", ".join(map(_outcome, fs.experiment.best_of_each_seed(record["runs"]))))


def _outcome(best: fs.experiment.Best) -> str:
    reached = f"not reached, best accuracy {best.accuracy:.4f}"
    if best.rounds is not None:
        reached = f"{best.rounds:.1f} rounds"
    return f"seed {best.seed}: {reached} at rate {best.rate:g}"


if __name__ == "__main__":
    run("reproduce.py", _reproduce)
