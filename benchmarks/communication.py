"""Cumulative loss against cumulative communication: the main figure of dynamic model averaging.

    python benchmarks/communication.py --experiments=drift --out=DIR
    python benchmarks/communication.py --data_dir=DIR_OF_MNIST --out=benchmarks/results/communication

A point for each protocol and setting, at every learning rate. Periodic averaging with the same b and the
same rate is what the others are compared with. --out receives communication.json, tables.md, a picture
of each experiment's points and, of the drift, what is lost and sent over time.

M. Kamp et al., "Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210, section 5: MNIST with m = 100, B = 10 and 14,000 examples a learner; a
random graphical model that drifts, with m = 100 and 5,000 examples a learner.
"""

import json
import pathlib
import sys
import time

from absl import app, flags, logging

import fedjax_sim as fs

_EXPERIMENTS = flags.DEFINE_list("experiments", ["mnist", "drift"], "Some of mnist, drift.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files; without it mnist5k.")
_MODEL = flags.DEFINE_enum("model", "2nn", ["2nn", "cnn", "logistic"], "Of mnist.")
_LEARNERS = flags.DEFINE_integer("learners", 100, "m.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 1400, "Of a learner on mnist, a batch each.", lower_bound=1)
_DRIFT_STEPS = flags.DEFINE_integer("drift_steps", 500, "Of a learner on the drifting model.")
_DRIFT_AT = flags.DEFINE_list("drift_at", ["100", "200", "300", "400"], "Steps of a new model.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 10, "B.", lower_bound=1)
_PERIOD = flags.DEFINE_integer("period", 10, "b of dynamic and hedged.", lower_bound=1)
_PERIODS = flags.DEFINE_list("periods", ["1", "10", "50", "100"], "b of periodic averaging.")
_DELTAS = flags.DEFINE_list("deltas", ["0.1", "0.3", "1", "3", "10", "30"], "Delta.")
_HEDGED = flags.DEFINE_list("hedged_deltas", ["0.3", "1", "3"], "Delta of hedged.")
_FRACTIONS = flags.DEFINE_list("fractions", ["0.1", "0.3", "0.5"], "C of fed_avg.")
_FRACTION_PERIOD = flags.DEFINE_integer("fraction_period", 50, "b of fed_avg.", lower_bound=1)
_RATES = flags.DEFINE_list("rates", None, "Client rates; by default a few for each experiment.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of the runs.")
_AXIS = flags.DEFINE_enum("axis", "bytes", ["bytes", "seconds"], "What the points run over.")
_OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)

RATES = {"mnist": ["0.01", "0.03", "0.1"], "drift": ["0.03", "0.1", "0.3"]}
MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "logistic": fs.models.logistic_regression,
}
METHOD = {
    "mnist": "Each learner reads the training set in a random order of its own; accuracy is that of the "
    "mean model on the test set.",
    "drift": "Logistic regression; the source has 50 observed and 5 hidden variables with effects drawn "
    "from U(0, 1), and is drawn anew at each drift.",
}


def load(name):
    """The task, the streams, the stream mode, the number of steps, the evaluations."""
    if name == "drift":
        clients = fs.data.random_graphical_model(
            num_learners=_LEARNERS.value,
            examples_per_learner=_DRIFT_STEPS.value * _BATCH_SIZE.value,
            drift_at=[step * _BATCH_SIZE.value for step in drifts()],
            num_hidden=5,
            hidden_effects=(0.0, 1.0),
        )
        task = fs.models.logistic_regression(2, clients.examples["x"].shape[1:])
        return task, clients, "once", _DRIFT_STEPS.value, ()
    train, test = fs.data.load("mnist" if _DATA_DIR.value else "mnist5k", data_dir=_DATA_DIR.value)
    clients = fs.data.federate(train, fs.data.iid(num_clients=_LEARNERS.value, seed=0))
    task = MODELS[_MODEL.value](10, clients.examples["x"].shape[1:])
    return task, clients, "shared", _STEPS.value, fs.accuracy(task, test, layout=fs.Layout())


def drifts():
    return [int(step) for step in _DRIFT_AT.value]


def floats(values):
    return [float(value) for value in values]


def families():
    """(name, protocol, hparams to sweep) of every grid of settings."""
    p, b = fs.protocols, _PERIOD.value
    yield "none", p.none(period=b), {}
    for period in map(int, _PERIODS.value):
        yield "periodic", p.periodic(period=period), {}
    yield "dynamic", p.dynamic(delta=1.0, period=b), {"delta": floats(_DELTAS.value)}
    if _HEDGED.value:
        yield "hedged", p.hedged(delta=1.0, period=b), {"delta": floats(_HEDGED.value)}
    if _FRACTIONS.value:
        fractions = {"fraction": floats(_FRACTIONS.value)}
        yield "fed_avg", p.fed_avg(fraction=0.1, period=_FRACTION_PERIOD.value), fractions


def measure(name):
    """The points of an experiment."""
    task, clients, stream, steps, evaluate = load(name)
    rates = floats(_RATES.value or RATES[name])
    points = []
    for protocol_name, protocol, grid in families():
        started = time.perf_counter()
        algorithm = fs.dynamic_averaging(
            task,
            protocol,
            num_learners=clients.num_clients,
            batch_size=_BATCH_SIZE.value,
            stream=stream,
        )
        if steps % protocol.period:
            sys.exit(f"{steps} steps are no multiple of b = {protocol.period}; choose others")
        # A row every 10 steps under drift, to see what follows each; elsewhere ten rows a run.
        every = _PERIOD.value if name == "drift" else max(1, steps // 10)
        result = fs.sweep(
            algorithm,
            clients,
            hparams=grid | {"client_lr": rates},
            seeds=[int(seed) for seed in _SEEDS.value],
            num_rounds=steps // protocol.period,
            eval_every=max(1, every // protocol.period),
            evaluate=evaluate,
        )
        points += fs.experiment.frontier_points(
            result.runs, protocol=protocol_name, period=protocol.period
        )
        seconds = time.perf_counter() - started
        print(f"{name}: {protocol_name}, b = {protocol.period}, {seconds:.0f} s", file=sys.stderr)
    return points


def headline(compared):
    """Of each rate, the dynamic averaging that sends least within 2 % of periodic averaging's loss."""
    lines = []
    for rate in dict.fromkeys(point["rate"] for point in compared):
        own = [point for point in compared if point["rate"] == rate]
        silent = next(point for point in own if point["protocol"] == "none")
        near = [p for p in own if p["protocol"] == "dynamic" and p["loss_ratio"] <= 1.02 and p["bytes"]]
        if near:
            best = max(near, key=lambda point: point["times_fewer_bytes"])
            label, fewer = fs.experiment.point_label(best), best["times_fewer_bytes"]
            found = f"{label} sends {fewer:.1f} times fewer bytes at {best['loss_ratio'] - 1:+.1%} loss"
        else:
            found = "no Delta of the grid is within 2 %"
        lines.append(f"- rate {rate:g}: {found}; without any message {silent['loss_ratio'] - 1:+.1%}")
    return "\n".join(lines) + "\n"


def main(_):
    logging.set_verbosity(logging.WARNING)  # not which backends JAX has looked for
    fs.use_all_cores()
    unknown = set(_EXPERIMENTS.value) - set(RATES)
    if unknown:
        sys.exit(f"--experiments: got {sorted(unknown)}, wanted some of {list(RATES)}")
    if str(_PERIOD.value) not in _PERIODS.value:
        sys.exit(f"--periods lack --period={_PERIOD.value}, with which the others are compared")
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    flag_values = {f.name: f.value for f in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    report = {**fs.experiment.provenance(), "flags": flag_values, "experiments": {}}
    text = []
    for name in _EXPERIMENTS.value:
        points = measure(name)
        points.sort(key=lambda point: point["rate"])
        compared = fs.experiment.compare_points(points, period=_PERIOD.value)
        report["experiments"][name] = {"method": METHOD[name], "points": points}
        summary = headline(compared)
        text.append(
            f"## {name}\n\n{METHOD[name]}\n\n{summary}\n{fs.experiment.frontier_table(compared)}"
        )
        panels = {
            f"{name}, rate {rate:g}": [point for point in points if point["rate"] == rate]
            for rate in dict.fromkeys(point["rate"] for point in points)
        }
        fs.experiment.plot_frontier(panels, out / f"{name}.png", axis=_AXIS.value)
        if name == "drift":
            plot_drift(points, out / "drift_over_time.png")
        print(f"\n{name}\n{summary}", flush=True)
    (out / "tables.md").write_text("\n".join(text))
    (out / "communication.json").write_text(json.dumps(report) + "\n")


def plot_drift(points, path):
    """Dynamic averaging over time beside periodic averaging, at the rate in the middle."""
    rates = list(dict.fromkeys(point["rate"] for point in points))
    rate = rates[len(rates) // 2]
    deltas = floats(_DELTAS.value)
    shown = [
        point
        for point in points
        if point["rate"] == rate and point["b"] == _PERIOD.value and point["seed"] == points[0]["seed"]
    ]
    shown = [
        point
        for point in shown
        if point["protocol"] == "periodic"
        or (point["protocol"] == "dynamic" and point["delta"] in deltas[:3])
    ]
    fs.experiment.plot_over_time(shown, path, drifts=drifts(), title=f"drift, rate {rate:g}")


if __name__ == "__main__":
    app.run(main)
