"""Runs every case of the contract on two devices in all, in one process or in one of two.

    python table_worker.py FOLDER DEVICES [COORDINATOR PROCESS]

Each case has a workdir in FOLDER, so a worker that is killed continues when it starts again. The first
process leaves what all cases have learned in FOLDER/found.npz.
"""

import pathlib
import sys

import jax
import numpy as np

import fedjax_sim as fs


def main():
    folder, devices, *job = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    if job:
        fs.runtime.connect(job[0], 2, int(job[1]))
    import contract_cases as cases
    import toys

    task, data, found = cases.linear(), toys.federation(), {}
    for name, make in cases.CASES.items():
        algorithm = make(task)
        placements = ["device"] if algorithm.needs_all_data else ["host"]
        if name == "scaffold":
            placements.append("device")
        for placement in placements:
            home = pathlib.Path(folder) / f"{name}, {placement}"
            settings = {"data_placement": placement, "workdir": home, "checkpoint_seconds": 0.0}
            if not home.exists():
                cases.run(algorithm, data, 2, **settings)
            result = cases.run(algorithm, data, **settings)  # continues
            outcome = cases.outcome(result.state, result.rows, data.num_clients)
            found |= {f"{home.name} {key}": leaf for key, leaf in outcome.items()}
    if fs.runtime.is_first():
        np.savez(pathlib.Path(folder) / "found.npz", **found)
    fs.runtime.wait_for_all()


if __name__ == "__main__":
    main()
