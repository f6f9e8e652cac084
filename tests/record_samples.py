"""Records of runs that never were."""

import fedjax_sim as fs

IID = "2nn-iid-C0.1-E1-B10"  # 92 rounds in table 4, 87 in table 1
CIFAR = "cifar-iid-C0.1-E5-B50"


def one(rate, rounds, *, seed=0, diverged=None, accuracy=0.98):
    """A run that crosses 0.97 in this round, or not at all."""
    names = ("rate", "seed", "rounds_to_target", "best_accuracy", "seconds", "diverged")
    values = (rate, seed, rounds, 0.5 if rounds is None else accuracy, 1.5, diverged)
    last = int(rounds or 100) + 1
    curve = {"rounds": [0, last], "accuracy": [0.1, values[3]], "train_loss": [None, 0.5]}
    return dict(zip(names, values, strict=True)) | curve


def record(*rounds, rates=(0.1, 0.215, 0.464), **cell):
    """Of a cell whose runs cross in these rounds, one for each rate."""
    cell = {"target": 0.97} | cell
    runs = [one(rate, r) for rate, r in zip(rates, rounds, strict=True)]
    return {"cell": cell, "num_rounds": 115, "seconds": 4.5, **fs.reporting.provenance(), "runs": runs}


def curve_record(rounds, accuracy, *, rates=(0.15,), **cell):
    """Of runs with these curves, which are not monotone, and so reach 0.85 or not."""
    names = ("rate", "seed", "best_accuracy", "seconds", "diverged", "rounds", "accuracy")
    runs = [
        dict(zip(names, (rate, 0, max(accuracy), 1.0, None, rounds, accuracy), strict=True))
        | {"rounds_to_target": fs.rounds_to_target(rounds, accuracy, cell.get("target", 0.85))}
        for rate in rates
    ]
    cell = {"target": 0.85} | cell
    return {
        "cell": cell,
        "num_rounds": rounds[-1],
        "seconds": 1.0,
        **fs.reporting.provenance(),
        "runs": runs,
    }


def loss_record():
    run = {"rate": 0.1, "seed": 0, "seconds": 1.0, "rounds": [0, 2], "full_train_loss": [2.3, 0.4]}
    return {"cell": {}, **fs.reporting.provenance(), "runs": [run | {"accuracy": [0.1, 0.9]}]}


def figure_1_record():
    losses = {"theta": [-0.2, 0.5, 1.2], "different": [1.0, 2.0, 1.0], "shared": [0.3, 0.2, 0.3]}
    return {"cell": {"figure": 1}, **losses, "seconds": 2.0, **fs.reporting.provenance(), "runs": []}
