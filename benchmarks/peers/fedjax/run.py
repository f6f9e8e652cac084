"""FedAvg by FedJAX: its own algorithm on its jit backend."""

import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import fedjax
import haiku as hk
import jax
import numpy as np

sys.path += [str(Path(__file__).parents[i]) for i in (1, 2)]
import jax_models
from jax_models import cross_entropy, dense
from workers import PROBE, load_job, norms, serve


class WholeBatches(fedjax.ClientDataset):
    """A client that trains on all its examples at once, which one batch size for all cannot say."""

    def shuffle_repeat_batch(self, hparams):
        return super().shuffle_repeat_batch(hparams.replace(batch_size=len(self)))


@hk.without_apply_rng
@hk.transform
def lstm(x):
    """`[T, B, in]` to `[T, B, units]`."""
    # `static_unroll`, which FedJAX's own model calls, is no faster and compiles 80 steps for minutes.
    core = hk.LSTM(256)
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]


def char_lstm(params, batch, rng=None):
    x = params["characters"]["embedding"][batch["x"].T]
    for p in (params["lstm1"], params["lstm2"]):
        x = lstm.apply({"lstm/linear": {"w": p["kernel"], "b": p["bias"]}}, x)
    return dense(params["fc"], x).swapaxes(0, 1)


def text(x):
    return x.astype(np.int32)


MODELS = jax_models.MODELS | {"lstm": (char_lstm, text)}


def main(path):
    job = load_job(path)
    if job.model not in MODELS:
        sys.exit(f"no {job.model}: haiku's LSTM has no peepholes")
    apply, decode = MODELS[job.model]
    x = decode(job.x)

    def apply_for_train(params, batch, rng):
        return apply(params, batch, rng if job.draws else None)

    model = fedjax.Model(
        init=lambda rng: job.params,
        apply_for_train=apply_for_train,
        apply_for_eval=apply,
        train_loss=cross_entropy,
        eval_metrics={},
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(job.learning_rate),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=job.batch_size, num_epochs=job.local_epochs, skip_shuffle=not job.draws
        ),
    )
    dataset = fedjax.ClientDataset if job.batch_size else WholeBatches
    rows = itertools.pairwise(job.offsets)
    datasets = [dataset({"x": x[a:b], "y": job.y[a:b]}) for a, b in rows]
    keys = jax.random.split(jax.random.PRNGKey(0), len(datasets))
    clients = list(zip(range(len(datasets)), datasets, keys, strict=True))
    server_state = algorithm.init(jax.device_put(job.params))
    probe = {"x": x[:PROBE], "y": job.y[:PROBE]}

    def run_round():
        new_state, _ = algorithm.apply(server_state, clients)
        return jax.block_until_ready(new_state.params)

    def report(params):
        loss = cross_entropy(probe, jax.jit(apply)(params, probe)).mean()
        leaves = jax.tree.leaves
        return {"loss": float(loss), **norms(leaves(job.params), leaves(params))}

    serve("FedJAX", {name: version(name) for name in ("fedjax", "jax")}, run_round, report)


if __name__ == "__main__":
    main(sys.argv[1])
