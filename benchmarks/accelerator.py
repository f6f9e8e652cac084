"""Checks and times this package on whatever device JAX finds; meant for one GPU.

    python benchmarks/accelerator.py --out=accelerator.json --pytorch_python=PATH --cifar_dir=DIR

First, a small round of each model must agree with float64 on the CPU; if one does not, nothing is
measured and the exit status is 1. Then come, in order of importance: the device's ceilings, rounds of
all models, pfl-research's CIFAR-10 benchmark from start to finish, numbers of lanes, sweeps, small
cohorts, PyTorch's loop on the same device, bfloat16, large cohorts and convolutions; --parts chooses
among them. Each part has a share of --budget_s; what does not fit is left out and named. Compiling takes
most of the time, on an H200 7 to 20 seconds per row. --out is written after every row, so a kill loses
nothing. No network is needed.

Exit status: 0, even if something was left out; 1 if models disagree or a row failed.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import accelerator_ceilings
import accelerator_check
import accelerator_models
import accelerator_others
import accelerator_rounds
import jax
from absl import app, flags, logging
from jax.extend import backend

import fedjax_sim as fs

_OUT = flags.DEFINE_string("out", None, "File for all measurements, as JSON.")
_BUDGET = flags.DEFINE_float(
    "budget_s", 480.0, "Seconds after which no row begins; the check always runs.", lower_bound=1
)
_PARTS = flags.DEFINE_list(
    "parts", None, "Parts to measure after the ceilings, such as p1,sweeps; by default all."
)
_SMALL = flags.DEFINE_bool("small", False, "Everything tiny and hardly optimised, for tests: no times.")
_CIFAR_DIR = flags.DEFINE_string(
    "cifar_dir", None, "Folder of CIFAR-10's binary files; by default generated images, just as fast."
)
_PYTORCH = flags.DEFINE_string(
    "pytorch_python", None, "Python of PyTorch's environment; by default this one, if it has PyTorch."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance",
    5e-3,
    "Maximum relative difference of a round's update from float64's. Two devices may disagree on the "
    "sign of a number near zero, and then on a ReLU; without that they are about 1e-5 apart.",
)

METHOD = {
    "correctness": accelerator_check.METHOD,
    "ceilings": "The best of five. Rates are those of all devices together.",
    "rounds": "FedAvg, E = 1, by `simulate`, equal clients of generated data: medians over blocks of "
    "rounds, after one untimed block; compiling is separate. Useful operations: three times the "
    "products of the forward pass. Sweeps: one run's share of the time of a round of all runs.",
    "cost": accelerator_models.COST,
}


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
      name: name of the part.
      share: share of the budget, in addition to what earlier parts have left.
      steps: (name, function of the seconds left) for each row, the important ones first.
    """

    name: str
    share: float
    steps: Callable


def parts(context, rows):
    """Yields all parts after the check.

    Args:
      context: `Context` of all rows.
      rows: rows so far, part -> name -> row.
    """
    of = functools.partial
    cohorts = (2, 4) if context.small else (100, 10, 1000)
    yield Part("ceilings", 0.11, of(accelerator_ceilings.steps, context.small))
    yield Part(f"rounds of {cohorts[0]}", 0.25, of(accelerator_rounds.round_steps, context, cohorts[0]))
    yield Part("p1", 0.17, lambda: [("p1", of(accelerator_rounds.p1, context))])
    yield Part("lanes", 0.06, of(accelerator_rounds.lane_steps, context))
    yield Part("sweeps", 0.09, of(accelerator_rounds.sweep_steps, context))
    yield Part(f"rounds of {cohorts[1]}", 0.11, of(accelerator_rounds.round_steps, context, cohorts[1]))
    yield Part("pytorch", 0.05, of(accelerator_others.pytorch_steps, context, _PYTORCH.value, rows))
    yield Part("bfloat16", 0.05, of(accelerator_rounds.bfloat16_steps, context))
    if not context.small:
        yield Part("rounds of 1000", 0.11, of(accelerator_rounds.round_steps, context, cohorts[2]))
        convolutions = [("lane_convolutions.py", accelerator_others.lane_convolutions)]
        yield Part("convolutions", 0.0, lambda: convolutions)


def chosen_parts(context, rows):
    """Returns the ceilings and what --parts names."""
    every = list(parts(context, rows))
    wanted, names = _PARTS.value, [part.name for part in every]
    if wanted is None:
        return every
    if unknown := sorted(set(wanted) - set(names)):
        sys.exit(f"--parts={','.join(unknown)}: no such part; wanted some of {', '.join(names)}")
    return [part for part in every if part.name in ("ceilings", *wanted)]


class Report:
    """A report of all results, written whenever something is added.

    Attributes:
      rows: part -> name -> row.
      left_out: what was not measured, or not completely: part, row and why.
      failed: likewise, what raised an error.
    """

    def __init__(self, path, **about):
        self._path, self._about = path, about
        self.rows, self.left_out, self.failed = {}, [], []
        self.seconds = {}

    def add(self, part, name, row):
        """Adds a row to a part."""
        self.rows.setdefault(part, {})[name] = row
        told = {key: value for key, value in row.items() if isinstance(value, str | int | float)}
        print(f"{part}: {name}: {told}", file=sys.stderr, flush=True)
        self.save()

    def lack(self, where, part, name, why):
        """Adds to `left_out` or `failed`."""
        where.append({"part": part, "row": name, "why": why})
        print(f"{part}: {name}: {why}", file=sys.stderr, flush=True)
        self.save()

    def save(self):
        """Writes the whole report."""
        if self._path:
            known = {"left_out": self.left_out, "failed": self.failed, "part_seconds": self.seconds}
            fs.reporting.write_text(
                self._path, json.dumps(self._about | known | {"parts": self.rows}, indent=1) + "\n"
            )


def measure(part, report, deadline):
    """Measures the rows of a part one by one, while the time until `deadline` seems to be enough."""
    longest, began = 0.0, time.perf_counter()
    for name, row in part.steps():
        start = time.perf_counter()
        if start + longest > deadline:
            left = max(deadline - start, 0)
            why = f"no time: {left:.0f} s are left, and an earlier row took {longest:.0f} s"
            report.lack(report.left_out, part.name, name, why)
            continue
        try:
            report.add(part.name, name, row(deadline - start))
        except accelerator_rounds.NotMeasuredError as error:
            if error.row:
                report.add(part.name, name, error.row)
            report.lack(report.left_out, part.name, name, str(error))
        except Exception as error:  # one row that does not fit into memory must not cost the others
            report.lack(report.failed, part.name, name, f"{type(error).__name__}: {str(error)[:500]}")
        longest = max(longest, time.perf_counter() - start)
        report.seconds[part.name] = time.perf_counter() - began
    report.save()


def check(context, report):
    """Returns the models with rounds that differ from float64's by more than the tolerance."""
    wrong, names = [], ("2nn", "cnn", "char-lstm", "cifar-cnn", "word-lstm", "pfl-cnn")
    names = names[:1] if context.small else names
    with ThreadPoolExecutor() as pool:  # they spend their time compiling
        differences = pool.map(lambda name: accelerator_check.difference(context.model(name)), names)
    for name, apart in zip(names, differences, strict=True):
        agrees = apart <= _TOLERANCE.value  # False if it is NaN
        report.add("correctness", name, {"difference": apart, "agrees": agrees})
        wrong += [] if agrees else [name]
    return wrong


def about():
    """Yields (name, value) for where and with what this runs."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield "torch", importlib.metadata.version("torch")
    yield "xla_flags", os.environ.get("XLA_FLAGS", "")
    yield "platform", backend.get_backend().platform_version
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        yield "driver", done.stdout.strip()


def number(value):
    """Returns three digits, or nothing for None."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(report):
    """Returns a Markdown table with a line for each row that has a time."""
    head = ["part", "row", "lanes", "ms", "GFLOP/s", "GB moved", "binding", "share", "compile s"]
    lines = [head, ["---", "---"] + ["---:"] * 4 + ["---", "---:", "---:"]]
    for part, rows in report.rows.items():
        for name, row in rows.items():
            if "seconds" not in row:
                continue
            scaled = {"ms": ("seconds", 1e3), "GFLOP/s": ("gflops", 1), "GB moved": ("bytes", 1e-9)}
            cells = {title: row[key] * unit for title, (key, unit) in scaled.items() if key in row}
            share = f"{row['share']:.1%}" if "share" in row else ""
            line = [
                part,
                name,
                str(row.get("lanes", "")),
                *(number(cells.get(title)) for title in scaled),
            ]
            lines.append([*line, row.get("binding", ""), share, number(row.get("compile_seconds"))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(report):
    """Yields what a table of rounds has no place for."""
    ceilings = report.rows.get("ceilings", {})
    if "bandwidth" in ceilings:
        yield f"Bandwidth: {ceilings['bandwidth']['gbytes_per_s']:,.0f} GB/s."
    if "launches" in ceilings:
        kernel, known, counted = (
            1e6 * ceilings["launches"][f"{key}_seconds"] for key in ("kernel", "trip", "counted_trip")
        )
        trips = f"a trip of a loop of known length {known:.1f}, of another {counted:.1f}"
        yield f"A kernel takes {kernel:.1f} us, {trips}."
    for row in report.rows.get("p1", {}).values():
        if "whole_seconds" in row:
            meaning = "" if row["data"] == "CIFAR-10" else ", which means nothing"
            yield (
                f"P1, {row['data']}: {row['rounds']} rounds in {row['whole_seconds']:.1f} s, "
                f"{row['whole_without_compiling']:.1f} s without compiling; final accuracy "
                f"{row['final_accuracy']:.1%}{meaning}."
            )
    for name, row in report.rows.get("pytorch", {}).items():
        if "over_ours" in row:
            yield f"{name}: {row['over_ours']:.1f} times our time."
    for title, lacks in (("Left out", report.left_out), ("Failed", report.failed)):
        for lack in lacks:
            yield f"{title}: {lack['part']}, {lack['row']}: {lack['why']}"


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    start = time.perf_counter()
    if _SMALL.value:  # compiling takes most of its time
        jax.config.update("jax_disable_most_optimizations", True)
    report = Report(
        _OUT.value,
        **fs.reporting.provenance(),
        **dict(about()),
        devices=jax.device_count(),
        flags={flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])},
        method=METHOD,
    )
    context = accelerator_rounds.Context(_SMALL.value, _CIFAR_DIR.value)
    chosen = chosen_parts(context, report.rows)
    if wrong := check(context, report):
        device = jax.devices()[0].device_kind
        sys.exit(
            f"{', '.join(wrong)}: a round on {device} differs from float64 on the CPU by more than "
            f"--tolerance={_TOLERANCE.value}; nothing was measured"
        )
    report.seconds["correctness"] = checked = time.perf_counter() - start

    context.ceilings = report.rows.setdefault("ceilings", {})
    deadline, left = start + checked, _BUDGET.value - checked
    whole = sum(part.share for part in chosen)
    for part in chosen:
        deadline += part.share / whole * left
        measure(part, report, deadline)
    print(table(report))
    print("\n" + "\n".join(remarks(report)))
    if report.failed:
        sys.exit(f"{len(report.failed)} rows failed")


if __name__ == "__main__":
    app.run(main)
