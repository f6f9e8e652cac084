"""The simulation of a federation: blocks of compiled rounds, evaluations between them."""

import contextlib
import functools
import hashlib
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import trees
from fedjax_sim.base import Algorithm, ClientBytes, Cohort, Layout
from fedjax_sim.checks import check_count, check_rates
from fedjax_sim.data.cohorts import sample_cohort
from fedjax_sim.devices import default_layout
from fedjax_sim.lanes import place
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.compilations import CompilationCounter
from fedjax_sim.simulation.journal import Journal
from fedjax_sim.simulation.progress import Progress
from fedjax_sim.simulation.result import Result

EvaluationFn = Callable[[Any], Mapping[str, float]]


class DivergenceError(ArithmeticError):
    """Training left the finite numbers.

    Attributes:
      round: the round in which it did.
    """

    def __init__(self, message: str, round: int):
        super().__init__(message)
        self.round = round


def cohort_size(num_clients: int, client_fraction: float) -> int:
    """`m = max(C * K, 1)` of the FedAvg paper: how many of `num_clients` take part in a round.

    Raises:
      ValueError: there are no clients, or the fraction lies outside [0, 1].
    """
    if num_clients < 1:
        raise ValueError("the federation has no clients; wanted at least one")
    if not 0 <= client_fraction <= 1:
        raise ValueError(f"client_fraction is {client_fraction}; wanted a number in [0, 1]")
    # Rounded first, so that 0.29 of 100 clients are 29 in spite of binary fractions.
    return max(math.floor(round(client_fraction * num_clients, 6)), 1)


def simulate(
    algorithm: Algorithm,
    data: Any,
    *,
    key: jax.Array,
    num_rounds: int,
    client_fraction: float = 0.1,
    evaluate: EvaluationFn | Sequence[EvaluationFn] = (),
    eval_every: int = 1,
    stop_at: float | None = None,
    hparams: Mapping[str, float] | None = None,
    layout: Layout | None = None,
    workdir: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = False,
) -> Result:
    """Runs rounds of a federated algorithm, evaluating, logging and saving between blocks of them.

    The rounds between two evaluations are one compiled program, and the same program serves every
    later call with this algorithm and this data's shapes: other rates and seeds compile nothing.

    Args:
      algorithm: such as `fed_avg(...)`.
      data: a `FederatedData`.
      key: PRNG key; with the settings it fixes the whole run.
      num_rounds: `R`.
      client_fraction: `C`; a round's cohort is `cohort_size(N, C)` clients, drawn anew each round.
      evaluate: functions of `params` whose results, dicts of floats, become a row; the name
        "test_accuracy" is the one that `stop_at`, the summary and the pictures look at.
      eval_every: rounds between evaluations; there is one before the first round and one at the end.
      stop_at: ends the run at the first evaluation with at least this "test_accuracy".
      hparams: values in place of the algorithm's defaults.
      layout: lanes and devices; `default_layout()` by default.
      workdir: for metrics.jsonl, config.json and checkpoints. A run that finds its own configuration
        there continues from its last checkpoint, and ends as it would have without interruption.
      config: what else identifies the run, kept in config.json; JSON values.
      checkpoint_seconds: the least time between two checkpoints (the last state is always saved).
      progress: shows a bar on a terminal, lines elsewhere.

    Returns:
      The final state, the rows, timing and counts.

    Raises:
      ValueError: a setting is out of its range, or the workdir is another run's.
      DivergenceError: a parameter or the loss is no longer a finite number.
    """
    size = cohort_size(data.num_clients, client_fraction)
    evaluators = (evaluate,) if callable(evaluate) else tuple(evaluate)
    hparams = _merge_hparams(algorithm.hparams, hparams or {})
    num_rounds = check_count("num_rounds", num_rounds)
    eval_every = check_count("eval_every", eval_every)
    _check(stop_at, evaluators, data)
    layout = layout or default_layout()
    home = None if workdir is None else pathlib.Path(workdir)
    if home is not None:
        settings = {
            "num_rounds": num_rounds,
            "client_fraction": client_fraction,
            "eval_every": eval_every,
            "target_accuracy": stop_at,
            "lanes": layout.lanes,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "data_digest": _digest(data),
        }
        files.claim(home, settings | hparams | dict(algorithm.settings) | dict(config or {}))

    with contextlib.ExitStack() as stack:
        if home is not None:
            stack.enter_context(files.locked(home))
        compiled = stack.enter_context(CompilationCounter())
        init_key, cohort_key, train_key = jax.random.split(key, 3)
        keys = place((cohort_key, train_key), layout)
        data = place(data, layout)
        rates = {name: np.float32(value) for name, value in hparams.items()}
        start = place(jax.jit(algorithm.init)(init_key, rates), layout)
        bytes_each = algorithm.client_bytes(start)
        journal = stack.enter_context(Journal(home, start, checkpoint_seconds))
        bar = stack.enter_context(Progress(num_rounds, journal.rows)) if progress else None
        earlier = journal.rows[-1]["seconds"] if journal.rows else 0.0
        started = time.perf_counter()

        def is_last(row: dict) -> bool:
            reached = stop_at is not None and row["test_accuracy"] >= stop_at
            return reached or row["round"] == num_rounds

        def conclude(row: dict, state: Any) -> None:
            for evaluation in evaluators:
                row |= {name: float(value) for name, value in evaluation(state.params).items()}
            if stop_at is not None and "test_accuracy" not in row:
                raise ValueError(
                    f"a target accuracy needs an evaluation named test_accuracy; there are {list(row)}"
                )
            if not all(value is None or math.isfinite(value) for value in row.values()):
                raise _divergence(row["round"], hparams, journal.saved_round)
            row["seconds"] = round(earlier + time.perf_counter() - started, 6)
            journal.record(row, state, last=is_last(row))
            if bar is not None:
                bar.update(row, is_last(row))

        def run_block(state: Any, done: int, count: int) -> tuple[Any, dict[str, jax.Array]]:
            return _run_block(
                state,
                data,
                keys,
                np.int32(done),
                np.int32(count),
                round_fn=algorithm.round,
                size=size,
                layout=layout,
                capacity=eval_every,
            )

        if not journal.rows:
            conclude(_row_zero(), start)
        if not is_last(journal.rows[-1]):
            # A block of no rounds compiles the program, so that the clock of the others runs for them.
            journal.state, _ = run_block(journal.state, 0, 0)
        while not is_last(journal.rows[-1]):
            before = journal.rows[-1]
            done = before["round"]
            count = min(eval_every - done % eval_every, num_rounds - done)
            block_started = time.perf_counter()
            state, infos = run_block(journal.state, done, count)
            infos = {name: np.asarray(info)[:count] for name, info in infos.items()}
            seconds = (time.perf_counter() - block_started) / count
            bad = np.flatnonzero(~infos["finite"])
            if bad.size:
                raise _divergence(done + 1 + int(bad[0]), hparams, journal.saved_round)
            row = _next_row(before, infos, clients=count * size, bytes_each=bytes_each)
            row["round_seconds"] = round(seconds, 6)
            conclude(row, state)
        return Result(journal.state, journal.rows, stop_at, layout, compiled.count, compiled.seconds)


def _row_zero() -> dict[str, Any]:
    """What is known before the first round, evaluation aside."""
    totals = dict.fromkeys(("round", "bytes_up", "bytes_down", "examples", "slots"), 0)
    return totals | {"train_loss": None, "round_seconds": None}


def _next_row(
    before: dict, infos: dict[str, np.ndarray], *, clients: int, bytes_each: ClientBytes
) -> dict[str, Any]:
    """The row after a block of rounds in which `clients` clients took part; totals go on."""
    return {
        "round": before["round"] + len(infos["train_loss"]),
        "train_loss": _mean_loss(infos["train_loss"], infos["examples"]),
        "bytes_up": before["bytes_up"] + clients * bytes_each.up,
        "bytes_down": before["bytes_down"] + clients * bytes_each.down,
        "examples": before["examples"] + int(infos["examples"].sum(dtype=np.int64)),
        "slots": before["slots"] + int(infos["slots"].sum(dtype=np.int64)),
    }


def _mean_loss(losses: np.ndarray, examples: np.ndarray) -> float | None:
    """The mean over all examples of some rounds; None where nobody had any."""
    return float(np.average(losses, weights=examples)) if examples.any() else None


@functools.partial(
    jax.jit,
    static_argnames=("round_fn", "size", "layout", "capacity"),
    donate_argnames="state",
)
def _run_block(state, data, keys, first, count, *, round_fn, size, layout, capacity):
    """`count` rounds from round `first`, at most `capacity`; infos are stacked, `[capacity]`."""
    cohort_key, train_key = keys

    def one_round(r, state):
        ids = sample_cohort(jax.random.fold_in(cohort_key, r), data.num_clients, size)
        key = jax.random.fold_in(train_key, r)
        state, info = round_fn(key, state, data, Cohort(ids, layout))
        finite = trees.all_finite(state.params) & jnp.isfinite(info["train_loss"])
        return state, info | {"finite": finite}

    def step(i, carry):
        state, infos = carry
        state, info = one_round(first + i, state)
        return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), infos, info)

    _, shapes = jax.eval_shape(one_round, first, state)
    infos = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, step, (state, infos))


def _check(stop_at: float | None, evaluators: Sequence[EvaluationFn], data: Any) -> None:
    if stop_at is not None and not 0 < stop_at <= 1:
        raise ValueError(f"the target accuracy is {stop_at}; wanted a share in (0, 1]")
    if stop_at is not None and not evaluators:
        raise ValueError("a target accuracy needs an evaluation, such as accuracy(task, test)")
    if int(data.offsets[-1]) == 0:
        raise ValueError("no client of the federation has any data; wanted at least one example")


def _merge_hparams(defaults: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"this algorithm has no hyper-parameter {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    merged = {name: float(value) for name, value in (dict(defaults) | dict(given)).items()}
    check_rates(merged)
    return merged


def _divergence(round: int, hparams: Mapping[str, float], saved: int | None) -> DivergenceError:
    if round == 0:
        return DivergenceError(
            "a loss is not a finite number before any training: do the labels go beyond the model's "
            "classes, or the features beyond what it can bear?",
            round,
        )
    rates = ", ".join(f"{name}={value:g}" for name, value in hparams.items())
    kept = "" if saved is None else f" The checkpoint of round {saved} is kept."
    return DivergenceError(
        f"training diverged in round {round}: a parameter or a loss is not a finite number "
        f"({rates}). The likely cause is a learning rate that is too high: try a third of "
        f"it.{kept}",
        round,
    )


def _digest(data: Any) -> str:
    """Identifies the clients' data, so that a run never continues on other data."""
    digest = hashlib.sha256(np.asarray(data.offsets).tobytes())
    for name in sorted(data.examples):
        column = np.ascontiguousarray(data.examples[name])
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(column.data)
    return digest.hexdigest()[:16]
