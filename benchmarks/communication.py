"""Cumulative loss against cumulative communication: the main figure of dynamic model averaging.

    python benchmarks/communication.py --experiments=drift --out=DIR
    python benchmarks/communication.py --data_dir=DIR_OF_MNIST --out=benchmarks/results/communication

There is a point for each protocol and setting, at every learning rate. The others are compared with
periodic averaging at the same b and rate. For each experiment --out receives a JSON file, a table, a
plot of its points and, for those that drift, a plot of loss and bytes over time.

M. Kamp et al., "Efficient decentralized deep learning by dynamic model averaging", ECML-PKDD 2018,
https://arxiv.org/abs/1807.03210, section 5: MNIST with m = 100, B = 10 and 14,000 examples a learner; a
random graphical model that drifts, with m = 100 and 5,000 examples a learner. The second source here is
our choice: its classes hardly overlap and its drifts are rarer, so little needs to be sent between two
drifts.
"""

import itertools
import json
import pathlib
import sys
import time

import numpy as np
from absl import app, flags, logging

import fedjax_sim as fs

_EXPERIMENTS = flags.DEFINE_list(
    "experiments", ["mnist", "drift", "clear_drift"], "Some of mnist, drift, clear_drift."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of MNIST's files; without it mnist5k.")
_MODEL = flags.DEFINE_enum("model", "2nn", ["2nn", "cnn", "logistic"], "Model of mnist.")
_LEARNERS = flags.DEFINE_integer("learners", 100, "m, learners.", lower_bound=2)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Steps of a learner, one batch each; by default 1400, 500, 2000.", lower_bound=5
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 10, "B.", lower_bound=1)
_PERIOD = flags.DEFINE_integer("period", 10, "b of dynamic and hedged.", lower_bound=1)
_PERIODS = flags.DEFINE_list("periods", ["1", "10", "50", "100"], "b of periodic averaging.")
_DELTAS = flags.DEFINE_list("deltas", ["0.1", "0.3", "1", "3", "10", "30"], "Delta.")
_HEDGED = flags.DEFINE_list("hedged_deltas", ["0.3", "1", "3"], "Delta of hedged.")
_FRACTIONS = flags.DEFINE_list("fractions", ["0.1", "0.3", "0.5"], "C of fed_avg.")
_FRACTION_PERIOD = flags.DEFINE_integer("fraction_period", 50, "b of fed_avg.", lower_bound=1)
_RATES = flags.DEFINE_list("rates", None, "Client rates; by default a few for each experiment.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the runs.")
_AXIS = flags.DEFINE_enum("axis", "bytes", ["bytes", "seconds"], "x-axis of the points.")
_OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)

RATES = {
    "mnist": ["0.01", "0.03", "0.1"],
    "drift": ["0.03", "0.1", "0.3"],
    "clear_drift": ["0.1", "0.3", "1"],
}
STEPS = {"mnist": 1400, "drift": 500, "clear_drift": 2000}
SOURCES = {
    "drift": {"num_hidden": 5, "hidden_effects": (0.0, 1.0)},
    "clear_drift": {"num_hidden": 10, "hidden_effects": (0.7, 1.0)},
}
DRIFTS = 4  # they divide the steps into equal parts
MODELS = {
    "2nn": fs.models.mnist_2nn,
    "cnn": fs.models.mnist_cnn,
    "logistic": fs.models.logistic_regression,
}
METHOD = {
    "mnist": "Each learner reads the training set in a random order of its own; accuracy is the mean "
    "model's on the test set.",
    "drift": "Logistic regression; the source has 50 observed and 5 hidden variables with effects drawn "
    "from U(0, 1), and is drawn anew after each fifth of the stream.",
    "clear_drift": "Logistic regression; the source has 50 observed and 10 hidden variables with "
    "effects drawn from U(0.7, 1), and is drawn anew after each fifth of the stream.",
}


def load(name):
    """Returns the task, the streams, how they are read, and the evaluations."""
    if name in SOURCES:
        clients = fs.data.random_graphical_model(
            num_learners=_LEARNERS.value,
            examples_per_learner=num_steps(name) * _BATCH_SIZE.value,
            drift_at=[step * _BATCH_SIZE.value for step in drifts(name)],
            **SOURCES[name],
        )
        task = fs.models.logistic_regression(2, clients.examples["x"].shape[1:])
        return task, clients, "once", ()
    train, test = fs.data.load(dataset(), data_dir=_DATA_DIR.value)
    clients = fs.data.federate(train, fs.data.iid(num_clients=_LEARNERS.value, seed=0))
    task = MODELS[_MODEL.value](10, clients.examples["x"].shape[1:])
    return task, clients, "shared", fs.evaluator(task, test, layout=fs.Layout())


def dataset():
    """Returns the name of the digits of the experiment mnist."""
    return "mnist" if _DATA_DIR.value else "mnist5k"


def num_steps(name):
    return _STEPS.value or STEPS[name]


def drifts(name):
    """Returns the steps of an experiment's drifts."""
    return [num_steps(name) * part // (DRIFTS + 1) for part in range(1, DRIFTS + 1)]


def floats(values):
    return [float(value) for value in values]


def families():
    """Yields (name, protocol, hparams to sweep) for every grid of settings."""
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
    """Returns the points of an experiment."""
    task, clients, stream, evaluate = load(name)
    steps, rates = num_steps(name), floats(_RATES.value or RATES[name])
    points = []
    for protocol_name, protocol, grid in families():
        started = time.perf_counter()
        algorithm = fs.dynamic_averaging(
            task,
            protocol,
            num_learners=clients.num_clients,
            batch_size=_BATCH_SIZE.value,
            client_lr=rates[0],
            stream=stream,
        )
        # Fifty rows per run under drift, to see what follows each drift; otherwise ten.
        every = steps // 50 if name in SOURCES else steps // 10
        result = fs.sweep(
            algorithm,
            clients,
            hparams=grid | {"client_lr": rates},
            seeds=[int(seed) for seed in _SEEDS.value],
            num_rounds=steps // protocol.period,
            eval_every=max(1, every // protocol.period),
            evaluate=evaluate,
        )
        points += fs.reporting.frontier_points(
            result.runs, protocol=protocol_name, period=protocol.period
        )
        seconds = time.perf_counter() - started
        print(f"{name}: {protocol_name}, b = {protocol.period}, {seconds:.0f} s", file=sys.stderr)
    return points


def at_equal_bytes(own, point):
    """Returns periodic averaging's loss ratio at a point's bytes, interpolated between its settings."""
    periodic = sorted((p["bytes"], p["loss_ratio"]) for p in own if p["protocol"] == "periodic")
    sent, ratios = zip(*periodic, strict=True)
    if not sent[0] <= point["bytes"] <= sent[-1]:
        return None
    return float(np.interp(np.log(point["bytes"]), np.log(sent), ratios))


def headline(compared):
    """Names per rate the dynamic averaging that sends least within 2 % of periodic averaging's loss."""
    lines = []
    for rate in dict.fromkeys(point["rate"] for point in compared):
        own = [point for point in compared if point["rate"] == rate]
        near = [p for p in own if p["protocol"] == "dynamic" and p["loss_ratio"] <= 1.02 and p["bytes"]]
        line = f"- rate {rate:g}: "
        if near:
            best = min(near, key=lambda point: point["bytes"])
            label, fewer = fs.reporting.point_label(best), best["times_fewer_bytes"]
            line += f"{label} sends {fewer:.1f} times fewer bytes at {best['loss_ratio'] - 1:+.1%} loss"
            alike = at_equal_bytes(own, best)
            if alike is not None:
                line += f" (periodic averaging with as many bytes: {alike - 1:+.1%})"
        else:
            line += "no Delta of the grid is within 2 %"
        silent = [point["loss_ratio"] for point in own if point["protocol"] == "none"]
        if silent:
            line += f"; without any message {silent[0] - 1:+.1%}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    unknown = set(_EXPERIMENTS.value) - set(RATES)
    if unknown:
        sys.exit(f"--experiments: got {sorted(unknown)}, wanted some of {list(RATES)}")
    if str(_PERIOD.value) not in _PERIODS.value:
        sys.exit(f"--periods lack --period={_PERIOD.value}, the baseline of the others; add it")
    for name, (_, protocol, _) in itertools.product(_EXPERIMENTS.value, families()):
        if num_steps(name) % protocol.period:
            sys.exit(f"{num_steps(name)} steps are no multiple of b = {protocol.period}; change --steps")
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    flag_values = {f.name: f.value for f in own if f.name not in ("data_dir", "out")}
    flag_values["dataset"] = dataset()
    for name in _EXPERIMENTS.value:
        points = measure(name)
        points.sort(key=lambda point: point["rate"])
        report = {**fs.reporting.provenance(), "flags": flag_values, "method": METHOD[name]}
        text = json.dumps(report | {"points": points}, allow_nan=False)
        fs.reporting.write_text(out / f"{name}.json", text + "\n")
        compared = fs.reporting.compare_points(points, period=_PERIOD.value)
        summary = headline(compared)
        page = ["# " + name, METHOD[name], summary, fs.reporting.frontier_table(compared)]
        fs.reporting.write_text(out / f"{name}.md", "\n\n".join(part.rstrip() for part in page) + "\n")
        panels = {
            f"{name}, rate {rate:g}": [point for point in points if point["rate"] == rate]
            for rate in dict.fromkeys(point["rate"] for point in points)
        }
        fs.reporting.plot_frontier(panels, out / f"{name}.png", axis=_AXIS.value)
        if name in SOURCES:
            plot_drift(name, points, out / f"{name}_over_time.png")
        print(f"\n{name}\n{summary}", flush=True)


def plot_drift(name, points, path):
    """Plots dynamic averaging over time beside periodic averaging, at the middle rate."""
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
    fs.reporting.plot_over_time(shown, path, drifts=drifts(name), title=f"{name}, rate {rate:g}")


if __name__ == "__main__":
    app.run(main)
