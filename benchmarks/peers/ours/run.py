"""FedAvg in fedjax_sim: all clients of the job in one compiled round."""

import functools
import math
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs

sys.path.append(str(Path(__file__).parents[2]))
from workers import PROBE, load_job, norms, serve

MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "dropout-cnn": functools.partial(fs.models.dropout_cnn, 10, (32, 32, 3)),
    "lstm": functools.partial(fs.models.char_lstm, peepholes=False),
    "lstm-peepholes": fs.models.char_lstm,
}
LSTM = {"characters": (), "lstm1": ("LSTM_0",), "lstm2": ("LSTM_1",), "fc": ("Dense_0",)}
# The job's names of layers, in the order in which flax made ours.
LAYERS = {
    "2nn": {"fc1": ("Dense_0",), "fc2": ("Dense_1",), "fc3": ("Dense_2",)},
    "cnn": {
        "conv1": ("ConvPool_0",),
        "conv2": ("ConvPool_1",),
        "fc1": ("MLP_0", "Dense_0"),
        "fc2": ("MLP_0", "Dense_1"),
    },
    "dropout-cnn": {
        "conv1": ("ConvPool_0",),
        "conv2": ("ConvPool_1",),
        "fc1": ("Dense_0",),
        "fc2": ("Dense_1",),
    },
    "lstm": LSTM,
    "lstm-peepholes": LSTM,
}


def make_task(job):
    """Makes the job's model; without draws, one that drops nothing."""
    task = MODELS[job.model]()
    if job.model == "dropout-cnn" and not job.draws:
        metrics = task.metrics  # which drop nothing
        task = task._replace(loss=lambda params, batch, key: metrics(params, batch)["loss"])
    return task


def initial_params(job):
    """Returns the job's parameters in the shape of our model's."""
    tree = {}
    for layer, path in LAYERS[job.model].items():
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch |= {kind: jnp.asarray(array) for kind, array in job.params[layer].items()}
    return tree


def main(path):
    job = load_job(path)
    task = make_task(job)
    algorithm = fs.fed_avg(
        task,
        client_lr=job.learning_rate,
        local_epochs=job.local_epochs,
        batch_size=job.batch_size or math.inf,
        shuffle="each_epoch" if job.draws else "never",
    )
    layout = fs.runtime.default_layout()
    data = fs.data.FederatedData({"x": job.x, "y": job.y}, job.offsets.astype(np.int32))
    initial = initial_params(job)
    hparams = {name: jnp.float32(value) for name, value in algorithm.hparams.items()}
    state = algorithm.init(jax.random.key(0), hparams, data.num_clients)._replace(params=initial)
    cohort = fs.Cohort(jnp.arange(data.num_clients, dtype=jnp.int32), layout)
    state, data, cohort, key = fs.engine.place((state, data, cohort, jax.random.key(1)), layout)
    round_fn = jax.jit(algorithm.round)

    def run_round():
        new, *_ = jax.block_until_ready(round_fn(key, state, (), data, cohort))
        return new.params

    def report(params):
        batch = {"x": job.x[:PROBE], "y": job.y[:PROBE]}
        total, count = task.loss(params, batch, jax.random.key(0))
        return {
            "loss": float(total.sum() / count.sum()),
            **norms(jax.tree.leaves(initial), jax.tree.leaves(params)),
        }

    versions = {name: version(name) for name in ("jax", "flax", "optax", "numpy")}
    serve("ours", versions, run_round, report, threads=layout.num_devices)


if __name__ == "__main__":
    main(sys.argv[1])
