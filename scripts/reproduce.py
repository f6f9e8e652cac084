"""Runs cells and figures of the FedAvg paper's MNIST part and prints ours beside the paper's.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", 2017.
Every cell is run at several learning rates, from likely ones outwards until the best lies inside the
grid, and ends when one of its curves has crossed the target, or at 1.25 times the paper's rounds.

  python scripts/reproduce.py --data_dir=DIR --table=4 --partition=iid
  python scripts/reproduce.py --data_dir=DIR --table=2 --rows=E=1/B=10,E=5/B=10 --seeds=0,1
  python scripts/reproduce.py --data_dir=DIR --figure=1
  python scripts/reproduce.py --report

DIR holds MNIST's four files. Figures 2 and 7 are the curves of tables 2 and 4; 6 and 8 follow the loss
on all train data for --rounds_limit rounds. The workdir receives cells/NAME.json for each finished
cell, tables.md, figureN.png and, with --report, report.html: one page of all that has been run so far.
A finished cell is not run again: delete its file if it shall be; an interrupted one starts anew.
"""

import contextlib
import math
import pathlib

from absl import flags
from common import numbers, run, say

import fedjax_sim as fs

_TABLE = flags.DEFINE_integer("table", None, "1, 2 or 4.")
_FIGURE = flags.DEFINE_integer("figure", None, "1, 2, 6, 7 or 8.")
_MODEL = flags.DEFINE_string(
    "model", None, "2nn (the default) or cnn, of table 1; tables 2 and 4 and figures have but one."
)
_PARTITION = flags.DEFINE_enum("partition", "both", ["iid", "noniid", "both"], "Whose data.")
_ROWS = flags.DEFINE_list("rows", None, "Such as E=1/B=10, in table 1 C=0.1/B=inf; all by default.")
_RATES = flags.DEFINE_list(
    "client_lrs",
    None,
    "Learning rates to begin with; by default three likely ones for each cell. Of figures 6 and 8 one "
    "rate, by default the cell's best, or before the cell is run the middle one of those.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the runs; the clients' data is the same for all.")
_ROUNDS_LIMIT = flags.DEFINE_integer(
    "rounds_limit",
    None,
    "Rounds at most; by default 1.25 times the paper's, which is what is accepted. Of figures 6 and 8: "
    "rounds, by default 30.",
)
_REPORT = flags.DEFINE_bool("report", False, "Write report.html from what has been run so far.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "Where results go.")

_MODELS = {"2nn": fs.models.mnist_2nn, "cnn": fs.models.mnist_cnn}


def _reproduce() -> None:
    wanted = [value for value in (_TABLE.value, _FIGURE.value) if value is not None]
    if len(wanted) != 1 and not (_REPORT.value and not wanted):
        raise ValueError("wanted one of --table, --figure and --report (see --help)")
    figures = {"1": 1} | {str(number): number for number in fs.experiment.FIGURES}
    if _FIGURE.value is not None:
        fs.choose("figure", str(_FIGURE.value), figures)
    if _ROWS.value is not None and not _ROWS.value:
        raise ValueError("--rows is empty; wanted names of rows with commas between, or no such flag")
    cells = _cells()
    rates = None if _RATES.value is None else numbers("client_lrs", _RATES.value, float)
    seeds = numbers("seeds", _SEEDS.value, int)
    workdir, records = pathlib.Path(_WORKDIR.value), fs.experiment.Records(_WORKDIR.value)
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} belongs to a run of another script; choose another workdir")
    asked = {
        "rates": rates,
        "seeds": seeds if flags.FLAGS["seeds"].present else None,
        "num_rounds": _ROUNDS_LIMIT.value,
    }
    with contextlib.ExitStack() as stack:
        if cells or _FIGURE.value == 1:  # a report alone may be written while cells are run
            stack.enter_context(records.locked())
        if _FIGURE.value == 1:
            _average_two_models(records)
        elif _FIGURE.value is not None and fs.experiment.FIGURES[_FIGURE.value].loss:
            _run_losses(cells, records, asked)
        elif cells:
            _run(cells, records, seeds, asked)
    drawn = _write(workdir, records)
    if _FIGURE.value is not None:
        say(f"wrote {drawn[_FIGURE.value]}")
    if _TABLE.value is not None:
        _print_table(cells, records.load_all())
    if _REPORT.value:
        page = fs.experiment.render_page(records.load_all(), drawn)
        fs.experiment.write_text(workdir / "report.html", page)
        say(f"wrote {workdir / 'report.html'}")


def _write(workdir: pathlib.Path, records: fs.experiment.Records) -> dict[int, pathlib.Path]:
    """Writes the tables and draws the figures that follow from what has been run."""
    known = records.load_all()
    if not known:
        raise ValueError(f"nothing has been run in {workdir} yet; begin with --table or --figure")
    fs.experiment.write_text(workdir / "tables.md", fs.experiment.render_tables(known))
    drawn = {n: fs.experiment.draw_figure(n, known, workdir) for n in (1, *fs.experiment.FIGURES)}
    return {n: path for n, path in drawn.items() if path}


def _cells() -> list[fs.experiment.PublishedCell]:
    """The cells that the flags ask for."""
    if _TABLE.value is not None:
        models = [model for number, model in fs.experiment.PARTS if number == _TABLE.value]
        model = _MODEL.value or (models[0] if len(models) == 1 else "2nn")
        cells = fs.experiment.published(_TABLE.value, model)
    elif _FIGURE.value is not None and _FIGURE.value != 1:
        cells = fs.experiment.figure_cells(_FIGURE.value)
    else:
        return []
    cells = fs.experiment.choose_rows(cells, _ROWS.value)
    return [cell for cell in cells if _PARTITION.value in (cell.partition, "both")]


def _print_table(cells, known) -> None:
    part = fs.experiment.published(cells[0].table, cells[0].model)  # whole, for its first row
    rows = fs.experiment.reproduction_table(part, known)
    chosen = [row for cell, row in zip(part, rows, strict=True) if cell in cells]
    print(fs.experiment.markdown(fs.experiment.reproduction_text(chosen)), end="")


def _missing(names: list[str], records, asked: dict) -> list[str]:
    """Those not run yet, with a word on the others.

    Raises:
      ValueError: one was run otherwise than the flags ask.
    """
    missing = []
    for name in names:
        record = records.load(name)
        if record is None:
            missing.append(name)
            continue
        ran = {
            "rates": {run["rate"] for run in record["runs"]},
            "seeds": {run["seed"] for run in record["runs"]},
            "num_rounds": {record.get("num_rounds")},
        }
        for what, wanted in asked.items():
            wanted = wanted if isinstance(wanted, list) or wanted is None else [wanted]
            if wanted is not None and not set(wanted) <= ran[what]:
                raise ValueError(
                    f"{name} was run with {what} {sorted(ran[what])}, and {wanted} is asked for; delete "
                    f"{records.path(name)} to run it again, or choose another workdir"
                )
        say(f"{name}: done before, see {records.path(name)}")
    return missing


def _run(cells, records, seeds, asked) -> None:
    missing = _missing([cell.name for cell in cells], records, asked)
    if not missing:
        return
    train, test, task = _load(cells[0].model)
    evaluate = fs.accuracy(task, test, layout=fs.Layout())
    for number, cell in enumerate((c for c in cells if c.name in missing), 1):
        say(f"{cell.name}, cell {number} of {len(missing)}; the paper's rounds: {cell.rounds}")
        record = fs.experiment.run_cell(
            cell,
            task,
            fs.experiment.paper_clients(train, cell.partition),
            evaluate,
            rates=asked["rates"],
            seeds=seeds,
            num_rounds=_ROUNDS_LIMIT.value,
            progress=True,
            report=say,
        )
        records.save(cell.name, record)
        _write(pathlib.Path(_WORKDIR.value), records)
        say(", ".join(map(_outcome, fs.experiment.best_of_each_seed(record["runs"]))))


def _run_losses(cells, records, asked) -> None:
    if asked["rates"] is not None and len(asked["rates"]) != 1:
        raise ValueError(f"--client_lrs={','.join(_RATES.value)}; figures 6 and 8 want one rate")
    missing = _missing([fs.experiment.loss_name(cell) for cell in cells], records, asked)
    if not missing:
        return
    train, test, task = _load(cells[0].model)
    evaluate = [fs.accuracy(task, test), fs.accuracy(task, train, prefix="full_train")]
    rounds = 30 if _ROUNDS_LIMIT.value is None else _ROUNDS_LIMIT.value
    for cell in cells:
        name = fs.experiment.loss_name(cell)
        if name in missing:
            say(name)
            record = fs.experiment.run_loss(
                cell,
                task,
                fs.experiment.paper_clients(train, cell.partition),
                evaluate,
                rate=asked["rates"][0] if asked["rates"] else _best_rate(cell, records),
                num_rounds=rounds,
                eval_every=math.ceil(rounds / 15),
            )
            records.save(name, record)
            _write(pathlib.Path(_WORKDIR.value), records)


def _best_rate(cell, records) -> float:
    record = records.load(cell.name)
    if record is None:
        return cell.starting_rates()[1]
    return fs.experiment.best_of_each_seed(record["runs"])[0].rate


def _average_two_models(records) -> None:
    if _missing([fs.experiment.FIGURE_1_RECORD], records, {}):
        train, _, task = _load("2nn")
        records.save(fs.experiment.FIGURE_1_RECORD, fs.experiment.average_two_models(task, train))


def _load(model: str):
    train, test = fs.data.load("mnist", data_dir=_DATA_DIR.value)
    return train, test, _MODELS[model]()


def _outcome(best: fs.experiment.Best) -> str:
    reached = f"not reached, best accuracy {best.accuracy:.4f}"
    if best.rounds is not None:
        reached = f"{best.rounds:.1f} rounds"
    return f"seed {best.seed}: {reached} at rate {best.rate:g}"


if __name__ == "__main__":
    run("reproduce.py", _reproduce)
