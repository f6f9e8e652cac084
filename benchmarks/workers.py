"""Both ends of the conversation between a benchmark and the libraries it compares.

Each participant is a process of its own, so that every library runs in its own environment and no
two thread pools meet. It loads one job, says that it is ready, and then answers every line
`round` with one line of JSON, until `quit` or the end of its input.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# A library's idle threads may spin for a while after its round (OpenMP's do for 0.2 s), on the cores
# that the next participant needs; and the previous participant has emptied the caches and the branch
# predictor. So each turn begins with a rest and, if rounds are short, with an untimed round.
_REST = 0.5
_SHORT = 1.0

PROBE = 1000  # Examples on which a round's model is evaluated, after the clock has stopped.


class WorkerError(RuntimeError):
    """A participant could not be started or stopped answering."""


class Worker:
    """A participant, seen from the benchmark.

    Args:
      name: name in tables and messages.
      command: command that starts it: the interpreter of its environment, a program that ends in
        `serve`, and the program's arguments.

    Raises:
      WorkerError: the participant did not become ready; the message ends with its stderr.
    """

    def __init__(self, name, command):
        self.name = name
        self._start = time.perf_counter()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            raise WorkerError(f"{name} did not start: {error}") from error
        self.ready = self._read()
        self.first_round = None  # seconds from the start of the process to the end of its first round

    def round(self):
        """Asks for one round and returns what the participant reports of it."""
        with contextlib.suppress(BrokenPipeError):  # `_read` finds out why it ended.
            print("round", file=self._process.stdin, flush=True)
        report = self._read()
        if self.first_round is None:
            self.first_round = time.perf_counter() - self._start
        return report

    @property
    def peak_mb(self):
        """The most memory that the process and its descendants held, each at its own peak, on Linux."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # It has ended.
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        tree = {self._process.pid}
        while more := {child for child, parent in parents.items() if parent in tree} - tree:
            tree |= more
        total = 0
        for pid in tree:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return total // 1000

    def close(self):
        """Ends the process; closing its input is enough, whatever it is doing."""
        self._process.communicate()
        self._stderr.close()

    def _read(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._stderr.seek(0)
        tail = "".join(self._stderr.readlines()[-8:])
        raise WorkerError(f"{self.name} ended with status {status}:\n{tail}")


def alternate(workers, rounds, *, at_least=3, budget=30.0):
    """Times the participants in turn, so that a drifting machine affects all alike.

    Args:
      workers: participants, already warm.
      rounds: turns to take, each of one round per participant.
      at_least: turns to take even if they exceed `budget`.
      budget: seconds after which no further turn begins; a participant whose round takes longer has
        one.

    Returns:
      A dict from a participant's name to the seconds of each of its rounds.
    """
    seconds = {worker.name: [] for worker in workers}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= at_least and time.perf_counter() - start > budget:
            break
        first = turn % len(workers)  # each follows each, as the one before leaves the caches behind
        for worker in workers[first:] + workers[:first]:
            if max(seconds[worker.name], default=0.0) > budget:
                continue
            time.sleep(_REST)
            taken = worker.round()["seconds"]
            again = taken < _SHORT
            seconds[worker.name].append(worker.round()["seconds"] if again else taken)
    return seconds


def save_job(path, *, params, **fields):
    """Writes a job; `params` is a dict of layers, each a dict of arrays by name."""
    flat = {f"param/{layer}/{k}": v for layer, p in params.items() for k, v in p.items()}
    np.savez(path, **fields, **flat)


def load_job(path):
    """Reads a job.

    Returns:
      A namespace of
        model: "2nn", "cnn", "dropout-cnn", "lstm" or "lstm-peepholes";
        x, y: for images, `[n, 28, 28, 1]` or `[n, 32, 32, 3]` uint8, to be divided by 255, and `[n]`
          int32; for text, `[n, T]` uint16, below 258, and `[n, T]` int32, where every position counts;
        offsets: `[K + 1]`, client k owns rows `offsets[k]:offsets[k + 1]`;
        params: `{layer: {"kernel": ..., "bias": ...}}`, dense kernels `[in, out]`, convolutions
          `[h, w, in, out]`, images flattened in the order height, width, channel. LSTM kernels are
          `[in + units, 4 units]`, gates in the order input, candidate, forget, output; 1 is added to
          the forget gate; `peepholes` are `[3, units]`, for input, forget and output. The layer
          `characters` has only an `embedding`, `[258, 8]`;
        batch_size: int, 0 for all of a client's examples;
        local_epochs: int; learning_rate: float;
        draws: bool, whether clients shuffle their examples and drop units.
    """
    with np.load(path) as file:
        arrays = dict(file)
    params = {}
    for name in [name for name in arrays if name.startswith("param/")]:
        _, layer, kind = name.split("/")
        params.setdefault(layer, {})[kind] = arrays.pop(name)
    scalars = {name: value.item() for name, value in arrays.items() if value.ndim == 0}
    job = SimpleNamespace(**arrays | scalars, params=params)
    job.draws = bool(job.draws)
    return job


def norms(old, new):
    """Returns what to compare rounds by: the L2 norms of the parameters and of the round's update.

    The update tells implementations apart; one round hardly moves the norm of the whole.

    Args:
      old: parameter arrays before the round, in any order.
      new: parameter arrays after the round, in the same order.
    """
    old, new = (np.concatenate([np.ravel(a) for a in p], dtype=np.float64) for p in (old, new))
    # Not by np.linalg.norm: the idle threads of its BLAS would spin into the next round.
    param_norm, update_norm = (math.sqrt(np.sum(a * a)) for a in (new, new - old))
    return {"param_norm": param_norm, "update_norm": update_norm}


def serve(name, versions, run_round, report, *, threads=None):
    """Answers the benchmark, from the participant's side.

    Args:
      name: name of the participant.
      versions: dict from a package's name to its version.
      run_round: function without arguments that runs one round to its very end, on the device too.
        Only it is timed.
      report: function from the result of `run_round` to a dict of numbers. For a round of training:
        `loss`, the new model's mean loss on the job's first `PROBE` examples, and what `norms`
        returns. A participant that times something itself reports its own `seconds`.
      threads: number of threads of the participant; by default the number of cores.
    """
    _send(ready=True, name=name, versions=versions, threads=threads or os.cpu_count())
    for line in sys.stdin:
        if line.strip() == "quit":
            return
        start = time.perf_counter()
        result = run_round()
        seconds = time.perf_counter() - start
        _send(**{"seconds": seconds} | report(result))


def _send(**message):
    print(json.dumps(message), flush=True)
