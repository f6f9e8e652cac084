"""Parts of `accelerator.py` that time this package: rounds, numbers of lanes, sweeps, P1 as a whole."""

import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_models import cost, draw_images, judge, models

import fedjax_sim as fs

_BLOCKS = 5  # timed blocks after an untimed one; fewer if they last long
_MOST_SECONDS = 5.0
_RATE = 0.01


class NotMeasuredError(Exception):
    """Something was not measured, or not completely.

    Attributes:
      row: the known part of the row.
    """

    def __init__(self, why, **row):
        super().__init__(why)
        self.row = row


class Clock:
    """An evaluation that makes `stop_at` end a run once enough blocks are timed."""

    def __init__(self, seconds):
        self._seconds, self._calls, self._warm = seconds, 0, math.inf

    def __call__(self, params):
        now = time.perf_counter()
        self._calls += 1  # before the first block, after it, and so on
        if self._calls == 2:
            self._warm = now
        timed, late = self._calls - 2, now - self._warm > self._seconds
        return {"test_accuracy": float(timed >= 1 if late else timed >= _BLOCKS)}


def algorithm_of(task, model):
    """Returns FedAvg as in all rows but P1."""
    return fs.fed_avg(task, local_epochs=1, batch_size=model.batch_size, client_lr=_RATE)


def rounds(model, data, cohort, left, ceilings, *, lanes=None, dtype="float32"):
    """Returns a row of a model's round, with a cohort drawn from all clients of the data."""
    task = model.task() if dtype == "float32" else fs.models.bfloat16(model.task())
    block = max(1, 100 // cohort)
    result = fs.simulate(
        algorithm_of(task, model),
        data,
        key=jax.random.key(0),
        num_rounds=(1 + _BLOCKS) * block,
        client_fraction=cohort / data.num_clients,
        eval_every=block,
        evaluate=Clock(min(left, _MOST_SECONDS)),
        stop_at=0.5,
        layout=None if lanes is None else fs.runtime.default_layout(lanes),
    )
    seconds = [row["round_seconds"] for row in result.rows[2:]]
    return {
        "cohort": cohort,
        "examples_of_each": model.size,
        "batch_size": model.batch_size,
        "lanes": result.layout.lanes,
        "dtype": dtype,
        "block_rounds": block,
        "block_seconds": seconds,
        "compile_seconds": result.compile_seconds,
        **judge(statistics.median(seconds), cost(model, cohort, dtype), ceilings, dtype),
    }


def round_steps(context, cohort):
    """Yields a row for each model."""
    names = ("2nn", "cnn", "char-lstm", "cifar-cnn", "word-lstm", "2nn-b50", "cnn-b50")
    for name in ("2nn",) if context.small else names:
        yield f"{name}, cohort {cohort}", lambda left, name=name: context.rounds(name, cohort, left)


def lane_steps(context):
    """Yields rows of the same round with several numbers of lanes."""
    cohort, choices = (4, (1,)) if context.small else (100, (16, 64, 100))
    for n in choices:
        yield (
            f"2nn, cohort {cohort}, {n} lanes",
            lambda left, n=n: context.rounds("2nn", cohort, left, lanes=n),
        )


def bfloat16_steps(context):
    """Yields rows of rounds in bfloat16, with weights in float32."""
    cohort = 2 if context.small else 100
    for name in ("2nn",) if context.small else ("2nn", "cnn"):
        yield (
            f"{name}, cohort {cohort}, bfloat16",
            lambda left, name=name: context.rounds(name, cohort, left, dtype="bfloat16"),
        )


def sweep_steps(context):
    """Yields rows of sweeps of the 2NN, with all runs as an axis of one program."""
    for rates, seeds in ((1, 1), (2, 1)) if context.small else ((1, 1), (11, 1), (11, 4)):
        yield (
            f"2nn, {rates * seeds} runs",
            lambda left, rates=rates, seeds=seeds: sweep(context, rates, seeds),
        )


def sweep(context, num_rates, num_seeds):
    """Returns a row with the time of one run's round in a sweep."""
    cohort, block = (2, 2) if context.small else (10, 10)
    model, data = context.model("2nn"), context.data("2nn")
    rates = np.geomspace(0.003, 0.03, num_rates).round(5).tolist()
    result = fs.sweep(
        algorithm_of(model.task(), model),
        data,
        hparams={"client_lr": rates},
        seeds=range(num_seeds),
        num_rounds=(1 + (1 if context.small else _BLOCKS)) * block,
        client_fraction=cohort / data.num_clients,
        eval_every=block,
        stacked=True,
    )
    # For stacked runs, `round_seconds` is one run's share of the time of all.
    seconds = statistics.median(row["round_seconds"] for row in result.runs[0].rows[2:])
    return {
        "runs": len(result.runs),
        "cohort": cohort,
        "compile_seconds": result.compile_seconds,
        **judge(seconds, cost(model, cohort), context.ceilings),
    }


def p1_data(cifar_dir, small):
    """Returns `(train, test, origin)` of CIFAR-10, or images of its shape."""
    if cifar_dir:
        return *fs.data.load("cifar10", data_dir=cifar_dir), "CIFAR-10"
    train, test = (200, 50) if small else (50_000, 10_000)
    columns = draw_images(np.random.default_rng(0), train + test, (32, 32, 3))
    x, y = columns["x"], columns["y"]
    parts = (slice(train), slice(train, None))
    made = (fs.data.from_arrays(x[p], y[p], num_classes=10, name="generated") for p in parts)
    return *made, "generated"


def normalised(task, x):
    """Returns the task on images with mean 0 and deviation 1 per channel over all of `x`."""
    mean, deviation = (np.float32(f((0, 1, 2), dtype=np.float64)) for f in (x.mean, x.std))

    def prepared(batch):
        return dict(batch, x=(batch["x"].astype(jnp.float32) - mean) / deviation)

    return task._replace(
        loss=lambda params, batch, key: task.loss(params, prepared(batch), key),
        metrics=lambda params, batch: task.metrics(params, prepared(batch)),
    )


def p1(context, left):
    """Runs the CIFAR-10 benchmark of pfl-research, from start to finish.

    F. Granqvist et al., "pfl-research: simulation framework for accelerating research in private
    federated learning", 2024, https://arxiv.org/abs/2404.06430: 1,000 users with 50 images each, 50 of
    them in each of 1,500 rounds, E = 1, B = 10, client rate 0.1, models averaged without weights, a test
    every 10 rounds; images are normalised as there, by channel over the training set.

    Raises:
      NotMeasuredError: time ran out before the last round.
    """
    started = time.perf_counter()
    users, num_rounds, every = (20, 4, 2) if context.small else (1000, 1500, 10)
    train, test, origin = p1_data(context.cifar_dir, context.small)
    model = context.model("pfl-cnn")
    task = normalised(model.task(), train.examples["x"])
    test_accuracy = fs.evaluator(task, test)
    tests = []

    def row():
        return {"data": origin, "users": users, "tests": tests}

    def evaluate(params):
        values = test_accuracy(params)
        tests.append([round(time.perf_counter() - started, 4), values["test_accuracy"]])
        if tests[-1][0] > left:
            done = every * (len(tests) - 1)
            raise NotMeasuredError(f"stopped after {done} of {num_rounds} rounds", rounds=done, **row())
        return values

    result = fs.simulate(
        fs.fed_avg(task, local_epochs=1, batch_size=10, client_lr=0.1, weighting="uniform"),
        fs.data.federate(train, fs.data.iid(num_clients=users, seed=0)),
        key=jax.random.key(0),
        num_rounds=num_rounds,
        client_fraction=0.1 if context.small else 0.05,
        evaluate=evaluate,
        eval_every=every,
    )
    jax.block_until_ready(result.params)
    whole = time.perf_counter() - started
    seconds = statistics.median(row["round_seconds"] for row in result.rows[1:])
    cohort = round(users * (0.1 if context.small else 0.05))
    return row() | {
        "rounds": num_rounds,
        "cohort": cohort,
        "lanes": result.layout.lanes,
        "whole_seconds": whole,
        "compile_seconds": result.compile_seconds,
        "whole_without_compiling": whole - result.compile_seconds,
        "rounds_seconds": every * sum(row["round_seconds"] for row in result.rows[1:]),
        "final_accuracy": tests[-1][1],
        **judge(seconds, cost(model, cohort), context.ceilings),
    }


class Context:
    """What rows share: the settings, the ceilings once they are known, the last federation.

    Attributes:
      small: whether everything is tiny.
      cifar_dir: folder of CIFAR-10's files, or None.
      ceilings: name -> row.
    """

    def __init__(self, small, cifar_dir):
        self.small, self.cifar_dir, self.ceilings = small, cifar_dir, {}
        self._models, self._kept = models(small), (None, None)

    def model(self, name):
        """Returns a `Model` by name."""
        return self._models[name]

    def data(self, name):
        """Returns the federation of a model; keeps the last one, since drawing one takes seconds."""
        model = self._models[name]
        if self._kept[0] != (model.draw, model.size):
            self._kept = (model.draw, model.size), model.data(4 if self.small else 1000)
        return self._kept[1]

    def rounds(self, name, cohort, left, **settings):
        """Returns a row, see the function of this name."""
        return rounds(self.model(name), self.data(name), cohort, left, self.ceilings, **settings)
