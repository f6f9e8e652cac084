"""Measures what more devices and processes gain on a CPU, and what a program for many devices holds.

    python benchmarks/scaling.py --out=benchmarks/results/scaling.json

It runs rounds of the CNN on one device with one core, on one device with all cores, on as many devices
as cores, and in as many processes of one device and one core each, which communicate through the
loopback interface. They take turns, each in fresh processes. Then, on 64 pretended devices and with a
small model, it measures how long a round takes to compile, and counts its collectives for cohorts of
several sizes.
"""

import itertools
import json
import socket
import statistics
import subprocess
import sys
from pathlib import Path

from absl import app, flags

import fedjax_sim as fs

_TURNS = flags.DEFINE_integer("turns", 3, "Starts of each set-up.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "A small model and few devices, for tests.")
_OUT = flags.DEFINE_string("out", None, "File for all times, as JSON.")

WORKER = Path(__file__).parent / "scaling_worker.py"
METHOD = (
    "FedAvg, E = 1, B = 10, generated images, equal clients, one lane. Seconds of a round: the median "
    "over the blocks of all turns, without the first block. Programs: "
    "jax.jit(round).lower(...).compile(), and its collectives by name in the optimised HLO."
)


def run(*processes):
    """Starts workers together and returns what the first one prints."""
    running = [
        subprocess.Popen(
            [sys.executable, WORKER, json.dumps(settings)], stdout=subprocess.PIPE, text=True
        )
        for settings in processes
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"a worker failed: {processes}")
    return json.loads(printed[0].splitlines()[-1])


def rounds_of(base, cores):
    """Yields (name, settings of each process)."""
    own = [dict(base, devices=1, cores=[core]) for core in cores]
    yield "1 device, 1 core", [own[0]]
    yield "1 device, all cores", [dict(base, devices=1, cores=cores)]
    yield f"{len(cores)} devices", [dict(base, devices=len(cores), cores=cores)]
    for placement in ("device", "host"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        yield (
            f"{len(cores)} processes, data on the {placement}",
            [
                dict(
                    settings,
                    placement=placement,
                    processes=len(cores),
                    process=i,
                    coordinator=address,
                )
                for i, settings in enumerate(own)
            ],
        )


def main(_):
    small = _SMOKE.value
    cores = list(range(fs.runtime.available_cores()))
    base = {
        "model": "logistic" if small else "cnn",
        "clients": 20,
        "examples": 20 if small else 100,
        "cohort": 10,
        "blocks": 3 if small else 6,
        "block": 2,
        "placement": "device",
        "processes": 1,
    }
    times = {}
    for turn in range(_TURNS.value):
        for name, processes in rounds_of(base, cores):
            found = run(*processes)["round_seconds"]
            times.setdefault(name, []).append(found)
            print(f"turn {turn}: {name}: {statistics.median(found):.4f} s a round", file=sys.stderr)
    median = {name: statistics.median(itertools.chain(*turns)) for name, turns in times.items()}
    devices = f"{len(cores)} devices"
    programs = []
    count = 8 if small else 64
    for cohort in (count, 2 * count) if small else (count, 4 * count, 16 * count):
        settings = {"model": "logistic", "devices": count, "cores": None, "placement": None}
        settings |= {"clients": cohort, "cohort": cohort, "examples": 10, "processes": 1}
        programs.append({"devices": count, "cohort": cohort, **run(settings)})

    report = {
        **fs.reporting.provenance(),
        "method": METHOD,
        "settings": base,
        "seconds_per_round": median,
        "turns": times,
        "speed": {name: median["1 device, 1 core"] / seconds for name, seconds in median.items()},
        "speed_of_devices": {name: median[devices] / seconds for name, seconds in median.items()},
        "programs": programs,
    }
    print("| set-up | s a round | speed over one core | speed over the devices of one process |")
    print("| --- | ---: | ---: | ---: |")
    for name, seconds in median.items():
        shares = f"{report['speed'][name]:.2f} | {report['speed_of_devices'][name]:.2f}"
        print(f"| {name} | {seconds:.4f} | {shares} |")
    print(
        "\n| devices | clients of a round | compiled in s | collectives |\n| ---: | ---: | ---: | --- |"
    )
    for row in programs:
        seconds, collectives = row["compile_seconds"], ", ".join(row["collectives"])
        print(f"| {row['devices']} | {row['cohort']} | {seconds:.1f} | {collectives} |")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
