"""One process of a job of two, or a process alone, that runs sweeps, learners and a sampler on two
devices in all.

    python job_worker.py FOLDER DEVICES [COORDINATOR PROCESS]

The first process leaves what it has learned in FOLDER/found.npz.
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
    import toys

    task, data = toys.task(), toys.federation((12, 9, 14, 11))
    found = {}

    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    # More runs than parts, then one run alone, whose clients both devices share; the second time each
    # sweep finds itself done.
    for rates in ([0.03, 0.1, 0.3], [1.0], [0.03, 0.1, 0.3]):
        swept = fs.sweep(
            algorithm,
            data,
            hparams={"client_lr": rates},
            num_rounds=2,
            client_fraction=0.75,
            evaluate=fs.evaluator(task, toys.dataset(20), layout=fs.Layout()),
            layout=fs.runtime.default_layout(mesh_runs=2),
            workdir=pathlib.Path(folder) / f"of{len(rates)}",
        )
        for run in swept.runs:
            found[f"rate{run.hparams['client_lr']}"] = run.state.params
            found[f"accuracy{run.hparams['client_lr']}"] = run.rows[-1]["test_accuracy"]

    protocol = fs.protocols.dynamic(delta=0.01, period=2)
    learners = fs.dynamic_averaging(
        task, protocol, num_learners=4, batch_size=3, client_lr=0.1, stream="repeat"
    )
    taught = fs.simulate(
        learners,
        data,
        key=jax.random.key(0),
        num_rounds=3,
        evaluate=fs.evaluator(task, toys.dataset(20)),
        workdir=pathlib.Path(folder) / "learners",
    )
    found["mean"] = taught.params
    found["bytes"] = taught.rows[-1]["bytes_up"]

    drawn = fs.simulate(
        algorithm,
        data,
        key=jax.random.key(1),
        num_rounds=6,
        eval_every=3,
        cohorts=fs.participation.poisson(0.4, 4),
    )
    found["poisson"] = drawn.params
    found["poisson messages"] = drawn.rows[-1]["messages_up"]

    if fs.runtime.is_first():
        named = jax.tree_util.tree_leaves_with_path(found)
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}
        np.savez(pathlib.Path(folder) / "found.npz", **arrays)
    fs.runtime.wait_for_all()


if __name__ == "__main__":
    main()
