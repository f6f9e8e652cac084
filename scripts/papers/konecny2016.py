"""Accuracy against uploaded bytes, for structured and sketched updates and their successors.

    python scripts/papers/konecny2016.py --data_dir=DIR --model=2nn --out=results/konecny_2nn.json

J. Konečný, H. B. McMahan, F. X. Yu, P. Richtárik, A. T. Suresh, D. Bacon, "Federated learning:
strategies for improving communication efficiency", 2016, https://arxiv.org/abs/1610.05492. There:
CIFAR-10 with an all-convolutional network. Here: that of TensorFlow's tutorial on CIFAR-10, or the
FedAvg paper's 2NN and CNN on MNIST. 100 IID clients, C = 0.1, E = 1, B = 10, updates weighted equally;
each chain at the best of the rates given. Bytes are those uploaded, as counted by the ledger, when the
running maximum of the test accuracy crosses the target.
"""

import functools
import pathlib

import jax
import numpy as np
from absl import app, flags
from matplotlib import pyplot as plt
from tqdm import tqdm

import fedjax_sim as fs
from fedjax_sim.compression import (
    drive,
    eden,
    ef21,
    error_feedback,
    low_rank,
    power_sgd,
    qsgd,
    quantize,
    random_mask,
    rotate,
    sign,
    subsample,
    tern_grad,
    top_k,
)

CHAINS = {
    "plain": [],
    "random mask 25 %": [random_mask(0.25)],
    "random mask 12.5 %": [random_mask(0.125)],
    "random mask 6.25 %": [random_mask(0.0625)],
    "low rank 25 %": [low_rank(0.25)],
    "low rank 12.5 %": [low_rank(0.125)],
    "low rank 6.25 %": [low_rank(0.0625)],
    "mask 6.25 %, 2 bits": [random_mask(0.0625) >> rotate() >> quantize(2)],
    "subset 6.25 %": [subsample(0.0625)],
    "subset 6.25 %, 2 bits": [subsample(0.0625) >> quantize(2)],
    "rotation, subset 6.25 %, 2 bits": [rotate() >> subsample(0.0625) >> quantize(2)],
    "2 bits": [quantize(2)],
    "rotation, 2 bits": [rotate() >> quantize(2)],
    "1 bit": [quantize(1)],
    "rotation, 1 bit": [rotate() >> quantize(1)],
    "DRIVE": [drive()],
    "DRIVE of a subset of 12.5 %": [subsample(0.125) >> drive()],
    "EDEN, 2 bits": [eden(2)],
    "QSGD, 2 levels of 512": [qsgd(2, 512)],
    "TernGrad": [tern_grad()],
    "signs, error feedback": [error_feedback(sign())],
    "top 1 %, 8 bits, error feedback": [error_feedback(top_k(0.01) >> quantize(8))],
    "top 1 %, 8 bits, EF21": [ef21(top_k(0.01) >> quantize(8))],
    "PowerSGD, rank 2": [power_sgd(2)],
}
# Model -> (data set, task, target).
MODELS = {
    "2nn": ("mnist", fs.models.mnist_2nn, 0.97),
    "cnn": ("mnist", fs.models.mnist_cnn, 0.99),
    "cifar": ("cifar10", fs.models.cifar_cnn, 0.75),
}

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST or CIFAR-10.", required=True)
_MODEL = flags.DEFINE_enum("model", "2nn", list(MODELS), "Model, with its data.")
_CHAINS = flags.DEFINE_multi_enum("chain", list(CHAINS), list(CHAINS), "A chain of codecs; repeatable.")
_RATES = flags.DEFINE_list("client_lrs", ["0.1", "0.2", "0.4"], "Learning rates, separated by commas.")
_TARGET = flags.DEFINE_float("target", None, "Test accuracy; by default that of the model.")
_ROUNDS = flags.DEFINE_integer("rounds", 100, "Communication rounds.", lower_bound=1)
_EVERY = flags.DEFINE_integer("eval_every", 2, "Rounds between evaluations.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the partition and of the runs.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "File for all curves, as JSON.")
_PLOT = flags.DEFINE_string("plot", None, "File for a picture of accuracy against uploaded bytes.")


def run(name, task, clients, evaluate, target):
    """Returns the record of a chain at its best rate."""
    algorithm = fs.fed_avg(
        task,
        client_lr=0.1,
        local_epochs=1,
        batch_size=10,
        weighting="uniform",
        aggregator=fs.aggregate(*CHAINS[name]),
    )
    swept = fs.sweep(
        algorithm,
        clients,
        hparams={"client_lr": [float(rate) for rate in _RATES.value]},
        seeds=[_SEED.value],
        num_rounds=_ROUNDS.value,
        client_fraction=0.1,
        evaluate=evaluate,
        eval_every=_EVERY.value,
    )
    found = [run for run in swept.runs if run.diverged is None]
    if not found:
        return {"chain": name, "diverged": True}

    def rank(run):
        reached = run.rounds_to_target(target)
        return (reached is None, reached or -run.best_accuracy)

    best = min(found, key=rank)
    accuracy, sent = ([row[column] for row in best.rows] for column in ("test_accuracy", "bytes_up"))
    to_target = fs.rounds_to_target(sent, accuracy, target)
    state = jax.eval_shape(lambda key: algorithm.init(key, algorithm.hparams, 100), jax.random.key(0))
    sizes = algorithm.message_bytes(state)
    return {
        "chain": name,
        "client_lr": best.hparams["client_lr"],
        "bytes of an update": sizes["up_update"],
        "times fewer": sizes["down_model"] / sizes["up_update"],
        "rounds to target": best.rounds_to_target(target),
        "bytes to target": to_target,
        "best accuracy": best.best_accuracy,
        "rounds": [row["round"] for row in best.rows],
        "accuracy": [fs.reporting.five_digits(value) for value in accuracy],
        "bytes_up": sent,
    }


def shown(record):
    """Returns a record's line of the table."""
    if record.get("diverged"):
        return {"chain": record["chain"], "client_lr": "all diverged"}
    reached, megabytes = record["rounds to target"], record["bytes to target"]
    return {
        "chain": record["chain"],
        "client_lr": f"{record['client_lr']:g}",
        "times fewer bits": f"{record['times fewer']:.1f}",
        "rounds to target": "" if reached is None else f"{reached:.0f}",
        "MB up to target": "" if megabytes is None else f"{megabytes / 1e6:.2f}",
        f"best accuracy of {_ROUNDS.value} rounds": f"{record['best accuracy']:.2%}",
    }


def draw(records, path):
    """Draws accuracy against uploaded bytes."""
    figure, axes = plt.subplots(figsize=(8, 5))
    styles = ("-", "--", ":")
    for i, record in enumerate(r for r in records if not r.get("diverged")):
        megabytes = np.asarray(record["bytes_up"][1:]) / 1e6
        best = np.maximum.accumulate(record["accuracy"][1:])
        axes.semilogx(megabytes, best, styles[i // 10 % 3], label=record["chain"], lw=1.2)
    axes.set(xlabel="MB uploaded", ylabel="test accuracy, running maximum")
    axes.legend(fontsize=6, loc="lower right")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    dataset, make, target = MODELS[_MODEL.value]
    target = target if _TARGET.value is None else _TARGET.value
    train, test = fs.data.load(dataset, data_dir=_DATA_DIR.value)
    clients = fs.data.federate(train, fs.data.iid(num_clients=100, seed=_SEED.value))
    task = make()
    one = functools.partial(run, task=task, clients=clients, target=target)
    evaluate = fs.evaluator(task, test)
    records = [one(name, evaluate=evaluate) for name in tqdm(_CHAINS.value, unit="chain")]
    lines = [shown(record) for record in records]
    columns = dict.fromkeys(column for line in lines for column in line)
    print(fs.reporting.markdown([{c: line.get(c, "") for c in columns} for line in lines]))
    if _PLOT.value:
        draw(records, _PLOT.value)
    if _OUT.value:
        about = {"method": __doc__, "model": _MODEL.value, "target": target, "runs": records}
        fs.reporting.write_json(pathlib.Path(_OUT.value), fs.reporting.provenance() | about)


if __name__ == "__main__":
    app.run(main)
