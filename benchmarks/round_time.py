"""Times one round of FedAvg beside other libraries and the machine's matrix multiplication rate.

    python benchmarks/round_time.py --pytorch_python=PATH --pfl_python=PATH --flower_python=PATH \
        --fedjax_python=PATH --drjax_python=PATH --out=round_time.json

Participants that do not compute our round are named and left out; the others run in turn, one at a
time. `benchmarks/peers/README.md` says how to make the peers' environments.
"""

import contextlib
import dataclasses
import math
import statistics
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from round_jobs import EQUAL, MODELS, RAGGED, ROWS, draw_colours, draw_text, load_digits, make_job
from workers import Worker, WorkerError, alternate

import fedjax_sim as fs

_PYTORCH = flags.DEFINE_string("pytorch_python", None, "Python of PyTorch's environment.")
_FEDJAX = flags.DEFINE_string("fedjax_python", None, "Python of FedJAX's environment.")
_DRJAX = flags.DEFINE_string("drjax_python", None, "Python of DrJAX's environment.")
_PFL = flags.DEFINE_string("pfl_python", None, "Python of pfl-research's environment.")
_FLOWER = flags.DEFINE_string("flower_python", None, "Python of Flower's environment.")
_BEFORE = flags.DEFINE_string("before", None, "Checkout of an earlier version of this package.")
_ROWS = flags.DEFINE_list("rows", None, "Rows to run, by name; all of them by default.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Rounds to time; slow rows stop at 3.", lower_bound=3)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST; by default the included digits.")

PEERS = Path(__file__).parent / "peers"


@contextlib.contextmanager
def started(commands, *args):
    """Starts those of `commands`, `{name: command}`, that can start, and has each run a round.

    Yields:
      A dict from a worker to the report of its first round, which compiles.
    """
    with contextlib.ExitStack() as stack:
        first = {}
        for name, command in commands.items():
            try:
                worker = stack.enter_context(contextlib.closing(Worker(name, [*command, *args])))
                first[worker] = worker.round()
            except WorkerError as error:
                if name == "ours":
                    raise
                print(f"Absent: {error}", file=sys.stderr)
        yield first


def check_agreement(commands, row, data, path):
    """Compares the participants on a small round of `row`'s model and batch size, without random draws.

    The clients' sizes differ, so that weights matter; they are multiples of B, because FedJAX fills
    up the last batch.

    Returns:
      The `commands` of those that compute what we compute, in the versions that their requirements
      name. The others are named and left out.
    """
    sizes = tuple(n * (row.batch_size or 20) for n in (1, 2, 3))
    small = dataclasses.replace(row, sizes=sizes)
    make_job(path, small, data, local_epochs=2, draws=False)
    with started(commands, path) as first:
        reports = {worker.name: (worker.ready["versions"], report) for worker, report in first.items()}
    able, (_, wanted) = {}, reports["ours"]
    for name, (versions, report) in reports.items():
        wrong = wrong_versions(commands[name], versions) | {
            key: f"{report[key]} where ours is {wanted[key]}"
            for key, tolerance in MODELS[row.model].tolerance.items()
            if not math.isclose(report[key], wanted[key], rel_tol=tolerance)
        }
        if wrong:
            print(
                f"Left out of {row.model}, B = {row.batch_size or 'inf'}: {name}: {wrong}",
                file=sys.stderr,
            )
        else:
            able[name] = commands[name]
    return able


def wrong_versions(command, versions):
    """Returns, for each package whose version is not the one of the peer's requirements, both."""
    scripts = [part for part in command if isinstance(part, Path) and part.name == "run.py"]
    requirements = scripts[0].with_name("requirements.txt")
    if not requirements.exists():
        return {}
    lines = [line.partition("==") for line in requirements.read_text().splitlines()]
    pinned = {name.partition("[")[0]: version for name, _, version in lines if version}
    return {
        name: f"version {version} where {pinned[name]} is required"
        for name, version in versions.items()
        if name in pinned and pinned[name].partition("+")[0] != version.partition("+")[0]
    }


def measure_peak(python, pytorch_python):
    """Returns the best matrix multiplication rate of JAX and, if present, of PyTorch, in GFLOP/s."""
    script = PEERS / "gemm" / "run.py"
    commands = {"JAX": [python, script, "jax"]}
    if pytorch_python:
        commands["PyTorch"] = [pytorch_python, script, "torch"]
    peak = {}
    for name, command in commands.items():
        with started({name: command}) as first:
            for worker in first:
                peak[name] = max(worker.round()["gflops"] for _ in range(5))
    return peak


def table(report, peers):
    """Returns a Markdown table with a line per row: our rate, our time over the floor (`floor.py`), and
    each peer's time over ours.
    """
    head = ["round", "ours ms", "GFLOP/s", "of peak", "of floor"]
    head += [column for peer in peers for column in (f"{peer} ms", f"{peer} / ours")]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, row in report["rows"].items():
        median = {who: statistics.median(seconds) for who, seconds in row["seconds"].items()}
        ours = median.get("ours", math.nan)
        rate = row["flops"] / ours / 1e9
        line = [name, f"{1e3 * ours:.1f}", f"{rate:.0f}", f"{rate / report['peak']:.0%}"]
        line.append(f"{ours / median.get('floor', math.nan):.2f}")
        for peer in peers:
            if peer in median:
                line += [f"{1e3 * median[peer]:.1f}", f"{median[peer] / ours:.2f}"]
            else:
                line += ["absent", ""]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def resources(report):
    """Returns a Markdown table of what else each participant takes, by row."""
    lines = [["round", "participant", "round ms", "first round s", "peak MB"]]
    lines.append(["---", "---"] + ["---:"] * 3)
    for name, row in report["rows"].items():
        for who, facts in row["participants"].items():
            ms = 1e3 * statistics.median(row["seconds"][who])
            figures = [f"{ms:.1f}", f"{facts['first_round_seconds']:.1f}", f"{facts['peak_mb']}"]
            lines.append([name, who, *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_):
    names = _ROWS.value or list(ROWS)
    if unknown := set(names) - set(ROWS):
        sys.exit(f"--rows: got {sorted(unknown)}, wanted some of {list(ROWS)}")
    if _BEFORE.value and not (Path(_BEFORE.value) / "fedjax_sim").is_dir():
        sys.exit(
            f"--before: got {_BEFORE.value}, wanted a checkout of this package, with fedjax_sim in it"
        )
    ours, pytorch = [sys.executable, PEERS / "ours" / "run.py"], PEERS / "pytorch" / "run.py"
    participants = {
        "ours": ours,
        "before": [_BEFORE.value and "env", f"PYTHONPATH={_BEFORE.value}", *ours],
        "PyTorch, process per core": [_PYTORCH.value, pytorch, "--process_per_core"],
        "pfl": [_PFL.value, PEERS / "pfl" / "run.py"],
        "pfl, 1 thread": [_PFL.value, PEERS / "pfl" / "run.py", "--one_thread"],
        "Flower": [_FLOWER.value, PEERS / "flower" / "run.py"],
        "PyTorch": [_PYTORCH.value, pytorch],
        "PyTorch, 1 thread": [_PYTORCH.value, pytorch, "--one_thread"],
        "DrJAX": [_DRJAX.value, PEERS / "drjax" / "run.py"],
        "FedJAX": [_FEDJAX.value, PEERS / "fedjax" / "run.py"],
    }
    commands = {name: command for name, command in participants.items() if command[0]}
    digits = load_digits(_DATA_DIR.value)
    data = {"digits": digits, "colours": draw_colours(), "text": draw_text()}
    report = fs.reporting.provenance() | {
        "gemm_gflops": measure_peak(sys.executable, _PYTORCH.value),
        "rows": {},
    }
    report["peak"] = max(report["gemm_gflops"].values())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.npz"
        rows = {name: ROWS[name] for name in names}
        kinds = {(row.model, row.batch_size): row for row in rows.values()}
        able = {kind: check_agreement(commands, row, data, path) for kind, row in kinds.items()}
        for name, row in rows.items():
            make_job(path, row, data)
            # The floor takes turns as well, because the machine's speed drifts.
            floor = {"floor": [sys.executable, Path(__file__).with_name("floor.py")]}
            with started(able[row.model, row.batch_size] | floor, path) as first:
                seconds = alternate(list(first), _REPEATS.value)
                memory = {worker: worker.peak_mb for worker in first}
                parts = next((worker.round() for worker in first if worker.name == "floor"), None)
            result = report["rows"][name] = dataclasses.asdict(row)
            result |= {"flops": row.flops, "seconds": seconds, "floor": parts}
            result["participants"] = {
                worker.name: worker.ready
                | {"first_round_seconds": worker.first_round, "peak_mb": memory[worker]}
                for worker in first
            }
            medians = {who: f"{statistics.median(s):.4f} s" for who, s in seconds.items()}
            print(name, medians, file=sys.stderr)

    peers = [name for name in participants if name != "ours"]
    print(table(report, peers), resources(report), sep="\n\n")
    print(f"\nMatrix multiplication, the peak: {report['gemm_gflops']} GFLOP/s.")
    if {EQUAL, RAGGED} <= set(names):
        pair = report["rows"][EQUAL]["seconds"], report["rows"][RAGGED]["seconds"]
        for who in pair[1]:
            equal, ragged = (statistics.median(seconds[who]) for seconds in pair)
            print(f"{who}: GFLOP/s on ragged clients over equal ones: {equal / ragged:.2f}.")
    if _OUT.value:
        fs.reporting.write_json(Path(_OUT.value), report)


if __name__ == "__main__":
    app.run(main)
