"""FedAvg by FedJAX: its own algorithm on its jit backend."""

import itertools
import sys
from importlib.metadata import version
from pathlib import Path

import fedjax
import jax
import optax

sys.path.append(str(Path(__file__).parents[2]))
from workers import PROBE, load_job, norms, serve


class WholeBatches(fedjax.ClientDataset):
    """A client that trains on all its examples at once, which one batch size for all cannot say."""

    def shuffle_repeat_batch(self, hparams):
        return super().shuffle_repeat_batch(hparams.replace(batch_size=len(self)))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=dimensions)
    return y + p["bias"]


def max_pool(x):
    # `reduce_window`, which haiku's pooling calls, takes a round of the CNN from 0.55 to 0.59 s.
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def two_nn(params, batch, rng=None):
    x = batch["x"].reshape(-1, 784)
    x = jax.nn.relu(dense(params["fc1"], x))
    x = jax.nn.relu(dense(params["fc2"], x))
    return dense(params["fc3"], x)


def cnn(params, batch, rng=None):
    x = max_pool(jax.nn.relu(conv(params["conv1"], batch["x"])))
    x = max_pool(jax.nn.relu(conv(params["conv2"], x)))
    x = jax.nn.relu(dense(params["fc1"], x.reshape(-1, 3136)))
    return dense(params["fc2"], x)


def cross_entropy(batch, logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def main(path):
    job = load_job(path)
    apply = {"2nn": two_nn, "cnn": cnn}[job.model]
    model = fedjax.Model(
        init=lambda rng: job.params,
        apply_for_train=apply,
        apply_for_eval=apply,
        train_loss=cross_entropy,
        eval_metrics={},
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(job.learning_rate),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=job.batch_size, num_epochs=job.local_epochs, skip_shuffle=not job.shuffle
        ),
    )
    dataset = fedjax.ClientDataset if job.batch_size else WholeBatches
    rows = itertools.pairwise(job.offsets)
    datasets = [dataset({"x": job.x[a:b], "y": job.y[a:b]}) for a, b in rows]
    keys = jax.random.split(jax.random.PRNGKey(0), len(datasets))
    clients = list(zip(range(len(datasets)), datasets, keys, strict=True))
    server_state = algorithm.init(jax.device_put(job.params))
    probe = {"x": job.x[:PROBE], "y": job.y[:PROBE]}

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
