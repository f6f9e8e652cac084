"""Times one round of FedAvg beside PyTorch, FedJAX and the machine's matrix multiplication rate.

    python benchmarks/round_time.py --pytorch_python=PATH --fedjax_python=PATH --out=round_time.json

Before anything is timed, the participants must agree on what a round computes. They then run in
turn, one at a time. `benchmarks/peers/README.md` says how to make the peers' environments.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from workers import Worker, WorkerError, alternate, save_job

_PYTORCH = flags.DEFINE_string("pytorch_python", None, "Python of PyTorch's environment.")
_FEDJAX = flags.DEFINE_string("fedjax_python", None, "Python of FedJAX's environment.")
_PFL = flags.DEFINE_string("pfl_python", None, "Python of pfl-research's environment.")
_FLOWER = flags.DEFINE_string("flower_python", None, "Python of Flower's environment.")
_BEFORE = flags.DEFINE_string("before", None, "Checkout of an earlier version of this package.")
_ROWS = flags.DEFINE_list("rows", None, "Rows to run, by name; all of them by default.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Rounds to time; slow rows stop at 3.", lower_bound=3)
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST; by default the included digits.")

PEERS = Path(__file__).parent / "peers"
# Maximum relative differences of one round between implementations. Rounding that flips a ReLU near
# zero moves the CNN's update by up to 0.5 %, even between two memory layouts of one library.
TOLERANCE = {"loss": 1e-3, "param_norm": 1e-3, "update_norm": 1e-2}
# The LSTM is smooth, so all agree to 1e-6. Swapping gates i and o, the mistake that changes least, is
# 1e-3 away, but only at a rate at which the round moves the gates: at 0.1 it is 1e-6.
SMOOTH = {"loss": 1e-5, "param_norm": 1e-5, "update_norm": 1e-4}


@dataclasses.dataclass(frozen=True)
class Layer:
    """The shapes of a layer's arrays, and the number of positions of an example they apply to."""

    shapes: dict[str, tuple[int, ...]]
    positions: int = 1

    @property
    def flops(self):
        """Forward operations of one example: two per weight and position, counting biases as weights."""
        return 2 * self.positions * sum(math.prod(shape) for shape in self.shapes.values())


def affine(*kernel, positions=1, **others):
    """Returns a layer of a kernel, a bias and other arrays."""
    return Layer({"kernel": kernel, "bias": kernel[-1:], **others}, positions)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
      data: "digits", "colours" or "text".
      layers: layers by name.
      learning_rate: learning rate of its clients.
      tolerance: maximum relative differences of a round.
    """

    data: str
    layers: dict[str, Layer]
    learning_rate: float
    tolerance: dict[str, float]

    @property
    def flops(self):
        """Forward operations of one example."""
        return sum(layer.flops for layer in self.layers.values())


def char_lstm(**others):
    """Returns the FedAvg paper's model of Shakespeare; `others` are further arrays of its LSTMs."""
    layers = {
        "characters": Layer({"embedding": (258, 8)}, positions=0),  # only looked up
        "lstm1": affine(8 + 256, 4 * 256, positions=80, **others),
        "lstm2": affine(256 + 256, 4 * 256, positions=80, **others),
        "fc": affine(256, 258, positions=80),
    }
    return Model("text", layers, learning_rate=1.0, tolerance=SMOOTH)


MODELS = {
    "2nn": Model(
        "digits",
        {"fc1": affine(784, 200), "fc2": affine(200, 200), "fc3": affine(200, 10)},
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    "cnn": Model(
        "digits",
        {
            "conv1": affine(5, 5, 1, 32, positions=28 * 28),
            "conv2": affine(5, 5, 32, 64, positions=14 * 14),
            "fc1": affine(7 * 7 * 64, 512),
            "fc2": affine(512, 10),
        },
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    # That of pfl-research's benchmark of CIFAR-10.
    "dropout-cnn": Model(
        "colours",
        {
            "conv1": affine(3, 3, 3, 32, positions=30 * 30),
            "conv2": affine(3, 3, 32, 64, positions=28 * 28),
            "fc1": affine(14 * 14 * 64, 128),
            "fc2": affine(128, 10),
        },
        learning_rate=0.1,
        tolerance=TOLERANCE,
    ),
    "lstm": char_lstm(),
    "lstm-peepholes": char_lstm(peepholes=(3, 256)),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One round: a model, the clients' sizes and the batch size (0 for all of a client's examples)."""

    model: str
    sizes: tuple[int, ...]
    batch_size: int

    @property
    def flops(self):
        """Useful operations: three times those of the forward pass; padding does not count."""
        return 3 * MODELS[self.model].flops * sum(self.sizes)


def lognormal_sizes(num_clients, total, sigma):
    """Draws sizes of at least 1 that add up to `total`."""
    share = np.random.default_rng(0).lognormal(sigma=sigma, size=num_clients)
    ends = np.round(np.cumsum(share) / share.sum() * (total - num_clients)).astype(int)
    return tuple((np.diff(ends, prepend=0) + 1).tolist())


EQUAL, RAGGED = "2nn-20x300-b10", "2nn-20ragged-b10"
ROWS = {
    "2nn-10x600-b10": Row("2nn", (600,) * 10, 10),
    "2nn-10x600-b50": Row("2nn", (600,) * 10, 50),
    "2nn-10x600-binf": Row("2nn", (600,) * 10, 0),
    "cnn-10x100-b10": Row("cnn", (100,) * 10, 10),
    "cnn-10x100-b50": Row("cnn", (100,) * 10, 50),
    "cnn-10x600-b10": Row("cnn", (600,) * 10, 10),
    "cnn-10x600-b50": Row("cnn", (600,) * 10, 50),
    EQUAL: Row("2nn", (300,) * 20, 10),
    RAGGED: Row("2nn", lognormal_sizes(20, 6000, sigma=1.2), 10),
    "dropout-cnn-10x50-b10": Row("dropout-cnn", (50,) * 10, 10),
    "dropout-cnn-50x50-b10": Row("dropout-cnn", (50,) * 50, 10),
    "dropout-cnn-1000x10-b10": Row("dropout-cnn", (10,) * 1000, 10),
    "lstm-10x20-b10": Row("lstm", (20,) * 10, 10),
    "lstm-peepholes-10x20-b10": Row("lstm-peepholes", (20,) * 10, 10),
    # Shakespeare's roles have 74 lines on average.
    "lstm-shakespeare-10-b10": Row("lstm", lognormal_sizes(10, 740, sigma=1.2), 10),
}


def load_digits(data_dir):
    """Returns MNIST's training images, `[n, 28, 28, 1]` uint8, and labels, `[n]` int32."""
    import fedjax_sim

    if data_dir:
        train, _ = fedjax_sim.data.load("mnist", data_dir=data_dir)
    else:
        train, _ = fedjax_sim.data.load("mnist5k")
    return train.examples["x"].reshape(-1, 28, 28, 1), train.examples["y"].astype(np.int32)


def draw_colours():
    """Draws images, `[n, 32, 32, 3]` uint8, and labels, `[n]` int32."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5000, 32, 32, 3), np.uint8), rng.integers(0, 10, 5000, np.int32)


def draw_text():
    """Draws lines of characters, `[n, 80]` uint16, and the characters that follow, `[n, 80]` int32."""
    share = 1 / np.arange(1, 96)  # Zipf's, of the printable characters
    drawn = np.random.default_rng(0).choice(95, (1000, 81), p=share / share.sum()) + ord(" ")
    return drawn[:, :-1].astype(np.uint16), drawn[:, 1:].astype(np.int32)


def draw_array(rng, kind, shape):
    """Draws an initial value: Glorot's for weights with inputs, else zeros."""
    if kind not in ("kernel", "embedding"):
        return np.zeros(shape, np.float32)
    *window, fan_in, fan_out = shape
    limit = math.sqrt(6 / (math.prod(window) * (fan_in + fan_out)))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def make_job(path, row, data, *, local_epochs=1, draws=True):
    """Writes `row` as a job on a random subset of its model's data, repeated if too small.

    Args:
      path: path of the job.
      row: row to run.
      data: `{name: (x, y)}`, see `Model`.
      local_epochs: E.
      draws: whether clients shuffle and drop units.
    """
    rng = np.random.default_rng(0)
    model = MODELS[row.model]
    x, y = data[model.data]
    chosen = np.resize(rng.permutation(len(y)), sum(row.sizes))
    params = {
        name: {kind: draw_array(rng, kind, shape) for kind, shape in layer.shapes.items()}
        for name, layer in model.layers.items()
    }
    save_job(
        path,
        x=x[chosen],
        y=y[chosen],
        offsets=np.cumsum([0, *row.sizes]),
        params=params,
        model=row.model,
        batch_size=row.batch_size,
        local_epochs=local_epochs,
        learning_rate=model.learning_rate,
        shuffle=draws,
        dropout=draws,
    )


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


def machine():
    """Returns the processor's name and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count()}


def table(report, peers):
    """Returns a Markdown table with a line per row: our rate and each peer's time over ours."""
    head = ["round", "ours ms", "GFLOP/s", "of peak"]
    head += [column for peer in peers for column in (f"{peer} ms", f"{peer} / ours")]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, row in report["rows"].items():
        median = {who: statistics.median(seconds) for who, seconds in row["seconds"].items()}
        ours = median.get("ours", math.nan)
        rate = row["flops"] / ours / 1e9
        line = [name, f"{1e3 * ours:.1f}", f"{rate:.0f}", f"{rate / report['peak']:.0%}"]
        for peer in peers:
            if peer in median:
                line += [f"{1e3 * median[peer]:.1f}", f"{median[peer] / ours:.2f}"]
            else:
                line += ["absent", ""]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_):
    names = _ROWS.value or list(ROWS)
    if unknown := set(names) - set(ROWS):
        sys.exit(f"--rows: got {sorted(unknown)}, wanted some of {list(ROWS)}")
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
        "FedJAX": [_FEDJAX.value, PEERS / "fedjax" / "run.py"],
    }
    commands = {name: command for name, command in participants.items() if command[0]}
    digits = load_digits(_DATA_DIR.value)
    data = {"digits": digits, "colours": draw_colours(), "text": draw_text()}
    report = {
        "command": sys.orig_argv,
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "machine": machine(),
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
            with started(able[row.model, row.batch_size], path) as first:
                seconds = alternate(list(first), _REPEATS.value)
                memory = {worker: worker.peak_mb for worker in first}
            result = report["rows"][name] = dataclasses.asdict(row)
            result |= {"flops": row.flops, "seconds": seconds}
            result["participants"] = {
                worker.name: worker.ready
                | {"first_round_seconds": worker.first_round, "peak_mb": memory[worker]}
                for worker in first
            }
            medians = {who: f"{statistics.median(s):.4f} s" for who, s in seconds.items()}
            print(name, medians, file=sys.stderr)

    peers = [name for name in participants if name != "ours"]
    print(table(report, peers))
    print(f"\nMatrix multiplication, the peak: {report['gemm_gflops']} GFLOP/s.")
    if {EQUAL, RAGGED} <= set(names):
        pair = report["rows"][EQUAL]["seconds"], report["rows"][RAGGED]["seconds"]
        for who in pair[1]:
            equal, ragged = (statistics.median(seconds[who]) for seconds in pair)
            print(f"{who}: GFLOP/s on ragged clients over equal ones: {equal / ragged:.2f}.")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
