"""A check that a device computes correctly: a small round of each model against float64 on the CPU.

The reference is a plain loop over clients and batches: `jax.grad` of the task's loss, no engine.
"""

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs

SIZES = (4, 6, 8)  # of the clients; one has a short last batch, and two lanes take three clients
BATCH_SIZE = 4
LANES = 2
METHOD = (
    f"One round of clients of {', '.join(map(str, SIZES))} examples, B = {BATCH_SIZE}, {LANES} lanes, "
    "float32 at the highest precision of products, against a plain loop in float64 on the CPU (with "
    "softmax in float32, as in the tasks). Dropout and distortions are off. The difference is that of "
    "the updates, ||a - b|| / ||b||, over all parameters together."
)


def calm(task):
    """Returns the task with the loss of its evaluation, which is not random."""
    return task._replace(loss=lambda params, batch, key: task.metrics(params, batch)["loss"])


def difference(model, rate=0.1):
    """Returns the relative difference of a round's update on the default device from the reference's."""
    task = calm(model.task()) if model.random else model.task()
    columns = model.draw(np.random.default_rng(1), sum(SIZES))
    offsets = np.cumsum([0, *SIZES]).astype(np.int32)

    algorithm = fs.fed_avg(task, local_epochs=1, batch_size=BATCH_SIZE, client_lr=rate, shuffle="never")
    hparams = {name: jnp.float32(value) for name, value in algorithm.hparams.items()}
    state = algorithm.init(jax.random.key(0), hparams, len(SIZES))
    cohort = fs.Cohort(jnp.arange(len(SIZES)), fs.Layout(LANES))
    data = fs.data.FederatedData(columns, offsets)
    with jax.default_matmul_precision("highest"):
        new, *_ = jax.jit(algorithm.round)(jax.random.key(1), state, (), data, cohort)

    wanted = reference_round(task, state.params, columns, SIZES, rate)
    before, after, wanted = map(flat, (state.params, new.params, wanted))
    return float(np.linalg.norm(after - wanted) / np.linalg.norm(wanted - before))


def reference_round(task, params, columns, sizes, rate, batch_size=BATCH_SIZE):
    """Returns the average model after an epoch per client, with examples in order; float64, NumPy."""

    def mean_loss(params, batch):
        total, count = task.loss(params, batch, jax.random.key(0))
        return total.sum() / count.sum()

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

        @jax.jit
        def step(params, batch):
            gradient = jax.grad(mean_loss)(params, batch)
            return jax.tree.map(lambda w, g: w - rate * g, params, gradient)

        average, first = jax.tree.map(np.zeros_like, start), 0
        for size in sizes:
            trained = start
            for i in range(first, first + size, batch_size):
                rows = slice(i, min(i + batch_size, first + size))
                trained = step(trained, {name: column[rows] for name, column in columns.items()})
            share = size / sum(sizes)
            average = jax.tree.map(lambda a, w, s=share: a + s * np.asarray(w), average, trained)
            first += size
        return average


def flat(tree):
    """Returns all leaves side by side, as float64."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
