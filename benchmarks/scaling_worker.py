"""One process of `scaling.py`: times rounds of a model, or looks into a program for many devices.

    python benchmarks/scaling_worker.py '{"model": "cnn", "devices": 2, ...}'

The settings are those of `scaling.py`. It prints one line of JSON.
"""

import json
import os
import re
import sys
import time


def settle(settings):
    """Keeps this process to its cores, before any library starts threads, and joins its job."""
    if settings["cores"]:
        os.sched_setaffinity(0, settings["cores"])
    import jax

    import fedjax_sim as fs

    jax.config.update("jax_num_cpu_devices", settings["devices"])
    if settings["processes"] > 1:
        fs.runtime.connect(settings["coordinator"], settings["processes"], settings["process"])


def make(settings):
    """Returns FedAvg, and equal clients with random images of ten classes."""
    import numpy as np
    import optax

    import fedjax_sim as fs

    rng = np.random.default_rng(0)
    n = settings["clients"] * settings["examples"]
    x = rng.integers(0, 256, (n, 28, 28, 1), np.uint8)
    rows = fs.data.from_arrays(x, rng.integers(0, 10, n).astype(np.int32), num_classes=10)
    data = fs.data.federate(rows, fs.data.iid(num_clients=settings["clients"], seed=0))
    models = {
        "cnn": fs.models.mnist_cnn,
        "2nn": fs.models.mnist_2nn,
        "logistic": fs.models.logistic_regression,
    }
    task = models[settings["model"]]()
    return fs.fed_avg(task, optax.sgd, client_lr=0.01, local_epochs=1, batch_size=10), data


def seconds_per_round(settings):
    """Returns the seconds per round of each block, as `simulate` times them."""
    import jax

    import fedjax_sim as fs

    algorithm, data = make(settings)
    result = fs.simulate(
        algorithm,
        data,
        key=jax.random.key(0),
        num_rounds=settings["blocks"] * settings["block"],
        client_fraction=settings["cohort"] / settings["clients"],
        eval_every=settings["block"],
        data_placement=settings["placement"],
    )
    return {"round_seconds": [row["round_seconds"] for row in result.rows[2:]]}


def program(settings):
    """Returns the time to compile the program of a round, and the collectives in it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_sim as fs

    algorithm, data = make(settings)
    layout = fs.runtime.default_layout()
    rates = {name: np.float32(value) for name, value in algorithm.hparams.items()}
    key = jax.random.key(0)
    begin = jax.jit(algorithm.init, static_argnums=2)
    arguments = fs.engine.place((key, begin(key, rates, data.num_clients), (), data), layout)
    cohort = fs.Cohort(fs.engine.place(jnp.arange(settings["cohort"], dtype=jnp.int32), layout), layout)
    started = time.perf_counter()
    compiled = jax.jit(algorithm.round).lower(*arguments, cohort).compile()
    seconds = time.perf_counter() - started
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    collectives = re.findall(rf"= \S+ ({kinds})(?:-start)?\(", compiled.as_text())
    started = time.perf_counter()
    jax.block_until_ready(compiled(*arguments, cohort))
    return {
        "compile_seconds": seconds,
        "collectives": collectives,
        "first_round_seconds": time.perf_counter() - started,
    }


def main():
    settings = json.loads(sys.argv[1])
    settle(settings)
    work = program if settings["placement"] is None else seconds_per_round
    print(json.dumps(work(settings)), flush=True)


if __name__ == "__main__":
    main()
