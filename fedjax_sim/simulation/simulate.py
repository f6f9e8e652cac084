"""The simulation of a federation: blocks of compiled rounds, with evaluations between them."""

import contextlib
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.participation import Sampler
from fedjax_sim.runtime.compilations import CompilationCounter, drop_programs_if_many
from fedjax_sim.runtime.devices import layout_for
from fedjax_sim.runtime.errors import device_errors_explained
from fedjax_sim.runtime.processes import agree, is_first, is_multiprocess
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation import workdir as files
from fedjax_sim.simulation.block import Blocks, split_key
from fedjax_sim.simulation.cohorts import choose_sampler, cohort_draws
from fedjax_sim.simulation.host_rounds import CohortPrefetcher, HostBlocks, stays_on_host
from fedjax_sim.simulation.identity import NOT_COMPARED, check_config, check_evaluations, identify
from fedjax_sim.simulation.journal import Journal, memory_file
from fedjax_sim.simulation.progress import Progress
from fedjax_sim.simulation.result import Result
from fedjax_sim.simulation.rows import (
    evaluate_into,
    evaluated_names,
    first_bad_round,
    first_row,
    next_row,
)
from fedjax_sim.simulation.validation import (
    EvaluationFn,
    as_evaluators,
    as_rates,
    check_begins,
    check_cohort,
    check_counters,
    check_data,
    check_initial_params,
    check_layout,
    check_one_run,
    merge_hparams,
)
from fedjax_sim.simulation.view import is_of_view


class DivergenceError(ArithmeticError):
    """Divergence of training: a parameter or a loss is not finite.

    Attributes:
      round: round in which training diverged.
    """

    def __init__(self, message: str, round: int):
        super().__init__(message)
        self.round = round


def simulate(
    algorithm: Algorithm,
    data: Any,
    *,
    key: jax.Array,
    num_rounds: int,
    client_fraction: float | None = None,
    clients_per_round: int | None = None,
    cohorts: Sampler | None = None,
    evaluate: EvaluationFn | Sequence[EvaluationFn] = (),
    eval_every: int = 1,
    stop_at: float | None = None,
    hparams: Mapping[str, float] | None = None,
    layout: Layout | None = None,
    data_placement: str = "auto",
    workdir: str | pathlib.Path | None = None,
    config: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 10.0,
    initial_params: Any = None,
    allow_version_change: bool = False,
    progress: bool = False,
) -> Result:
    """Runs rounds of a federated algorithm in blocks, with evaluation, logging and saving in between.

    The rounds between two evaluations are one compiled program. Later calls with the same algorithm and
    data of the same shapes reuse it: other rates and seeds compile nothing.

    Args:
      algorithm: algorithm to run, such as `fed_avg(...)`.
      data: a `FederatedData`.
      key: PRNG key; together with the settings it determines the whole run.
      num_rounds: `R`, number of rounds to run.
      client_fraction: `C`; each round draws a new cohort of `cohort_size(N, C)` clients; short for
        `cohorts=participation.uniform(C)`.
      clients_per_round: `K`, in place of `client_fraction`.
      cohorts: sampler of each round's clients, such as `participation.poisson(q, most)`. By default the
        algorithm's own, if it has one, else `uniform(0.1)`.
      evaluate: functions of `params` that return dicts of floats for the rows, or of arrays of floats,
        which rows hold as lists; for functions that see the state or clients' own models, see `of_view`.
        `stop_at`, the summary and the plots use the name "test_accuracy". With several processes, each
        calls the functions, at the same time.
      eval_every: rounds between evaluations; there is one before the first round and one at the end.
      stop_at: "test_accuracy" that ends the run, at the first evaluation that reaches it.
      hparams: values in place of the algorithm's defaults.
      layout: lanes and devices; `layout_for(algorithm, data)` by default.
      data_placement: where the data and the clients' memory stay; it does not change results. "device":
        all data on every device, and clients' memory there too, divided among the devices if `N` is a
        multiple of their number. "host": data in memory or in files; a thread, which JAX's context
        managers do not reach, gathers and sends each cohort during the round before. The memory of
        clients that have taken part lies in a file of the workdir, or in a temporary one. "auto": "host"
        for memory-mapped columns, for data or clients' memory that would fill more than half of a
        device's memory, and for several processes, each of which then reads only its own clients' rows;
        otherwise "device".
      workdir: folder for metrics.jsonl, config.json and checkpoints. A run that finds its own
        configuration there continues from its last checkpoint, and ends as if never interrupted. It is
        recognised by what it computes: the programs of the algorithm and of the evaluations, the data,
        the settings and `config`. Only `num_rounds` may be larger than before. A plain function in
        `evaluate` evaluates the first and the last model again, and must repeat its earlier results to
        one part in a thousand. Callbacks to the host inside a program are not compared.
      config: further JSON values that identify the run, kept in config.json. The run's own settings take
        precedence over entries of the same name.
      checkpoint_seconds: least time between two checkpoints (the last state is always saved).
      initial_params: parameters to begin with, like those of the algorithm's state; by default the
        algorithm makes them from the key.
      allow_version_change: whether to continue a run that began with another version of JAX or of this
        package. Its programs are then not compared.
      progress: whether to show a bar on a terminal, lines elsewhere.

    Returns:
      The final state, the rows, timing and counts.

    Raises:
      ValueError: a setting is out of range, the workdir belongs to another run, the data is malformed or
        needed on the devices, clients' memory does not fit, a round is too long for its counters, or the
        processes of a job differ in their settings or data.
      OSError: the disk of the workdir is full.
      DivergenceError: a parameter or the loss is no longer finite.
      OutOfMemoryError: a device's memory does not hold the lanes.
      ProcessLostError: another process of the job has ended.
    """
    cohorts = choose_sampler(algorithm, client_fraction, clients_per_round, cohorts)
    evaluators = as_evaluators(evaluate, stop_at)
    hparams = merge_hparams(algorithm, hparams or {})
    num_rounds = check_count("num_rounds", num_rounds)
    eval_every = check_count("eval_every", eval_every)
    check_data(algorithm, data, num_rounds)
    draws = cohort_draws(cohorts, data, key)
    check_cohort(algorithm, draws.shapes.cohort)
    algorithm = draws.extended(algorithm)
    check_initial_params(algorithm, hparams, initial_params)
    layout = layout or layout_for(algorithm, data)
    check_layout(algorithm, layout)
    check_counters(algorithm, draws, layout)
    check_one_run(algorithm.num_learners or draws.size, layout)
    rates = as_rates(hparams)
    on_host = stays_on_host(data_placement, algorithm, data, layout, rates)
    home = None if workdir is None else pathlib.Path(workdir)
    memory_path = None if home is None or not is_first() else memory_file(home)
    if on_host:
        visits = num_rounds * draws.size
        client_memory.check_disk(algorithm, data.num_clients, rates, visits, memory_path)
    else:
        client_memory.check_room(algorithm, data.num_clients, rates, layout)
    check_config(config or {})
    capacity = min(eval_every, num_rounds)
    settings = {
        "num_rounds": num_rounds,
        **cohorts.settings,
        "eval_every": eval_every,
        "target_accuracy": stop_at,
        "lanes": layout.lanes,
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }
    # The run's own settings come last, so that no name in `config` hides one.
    settings = dict(config or {}) | settings | hparams | dict(algorithm.settings)

    with contextlib.ExitStack() as stack:
        stack.enter_context(device_errors_explained(algorithm, data, layout))
        if home is not None or is_multiprocess():
            settings["data_digest"] = data.digest()
            settings |= identify(algorithm, data, draws, hparams, evaluators, initial_params)
        here = {"workdir": home is not None, "on_host": on_host, "num_evaluations": len(evaluators)}
        agree(settings | here | layout.describe())
        if home is not None:
            claim = stack.enter_context(
                files.claimed(
                    home,
                    settings,
                    not_compared=NOT_COMPARED,
                    allow_version_change=allow_version_change,
                )
            )
        drop_programs_if_many()
        compiled = stack.enter_context(CompilationCounter())
        if on_host:
            feed = CohortPrefetcher(data, split_key(key).cohorts, draws, layout, num_rounds)
            blocks = HostBlocks(
                algorithm, stack.enter_context(feed), draws, layout, capacity, memory_path=memory_path
            )
        else:
            blocks = Blocks.on_devices(algorithm, data, draws, layout, capacity)
        ((start, keys),) = blocks.starts([(key, hparams)], initial_params)
        check_begins(start.params, initial_params)
        sizes = blocks.message_bytes(start)
        journal = stack.enter_context(Journal(home, start, checkpoint_seconds))
        done = journal.rows[-1]["round"] if journal.rows else 0
        if done > num_rounds:
            raise ValueError(
                f"num_rounds is {num_rounds}, but the run in {home} has done {done} rounds; wanted at "
                "least as many, or another workdir"
            )
        if home is not None and journal.rows and not claim.evaluations_known:
            # Clients' memory on the host is that of the last row by now, so no view shows the first.
            is_late = on_host and algorithm.memory is not None
            first = [e for e in evaluators if not (is_late and is_of_view(e))]
            names = evaluated_names(journal.rows[0], sizes)
            known = names if len(first) == len(evaluators) else ()
            check_evaluations(first, journal.rows[0], blocks.view(start, 0), home, known)
            last = (journal.rows[-1], blocks.view(journal.state, done))
            check_evaluations(evaluators, *last, home, names)
        if home is not None:
            files.confirm(home, claim)
        bar = stack.enter_context(Progress(num_rounds, done)) if progress and is_first() else None
        earlier = journal.rows[-1]["seconds"] if journal.rows else 0.0
        started = time.perf_counter()

        def is_last(row: dict) -> bool:
            reached = stop_at is not None and row["test_accuracy"] >= stop_at
            return reached or row["round"] == num_rounds

        def conclude(row: dict, state: Any) -> None:
            if not evaluate_into(row, evaluators, blocks.view(state, row["round"]), stop_at):
                raise divergence(row["round"], hparams, journal.saved_round)
            row["seconds"] = round(earlier + time.perf_counter() - started, 6)
            journal.record(row, state, last=is_last(row))
            if bar is not None:
                bar.update(row["round"], row, last=is_last(row))

        if not journal.rows:
            conclude(first_row(sizes), start)
        if not is_last(journal.rows[-1]):
            # An empty block compiles the program, so that other blocks are timed without compilation.
            journal.state, *_ = blocks.run(journal.state, keys, 0, 0)
        while not is_last(journal.rows[-1]):
            before = journal.rows[-1]
            count = blocks.next_count(before["round"], num_rounds)
            state, infos, seconds = blocks.run(journal.state, keys, before["round"], count)
            infos = blocks.without_errors(before["round"], infos)
            bad = first_bad_round(before["round"], infos)
            if bad is not None:
                raise divergence(bad, hparams, journal.saved_round)
            row = next_row(before, infos, sizes)
            row["round_seconds"] = round(seconds / count, 6)
            conclude(row, state)
        compiling = (compiled.count, compiled.seconds)
        feeding = (feed.gather_seconds, feed.waited_seconds) if on_host else ()
        return Result(journal.state, journal.rows, stop_at, layout, *compiling, *feeding)


def divergence(round: int, hparams: Mapping[str, float], saved: int | None) -> DivergenceError:
    """Returns the error that says where training diverged, and the likely cause."""
    if round == 0:
        return DivergenceError(
            "a loss is not a finite number before any training; check that all labels are classes of "
            "the model and that no feature is too large for it",
            round,
        )
    rates = ", ".join(f"{name}={value:g}" for name, value in hparams.items())
    kept = "" if saved is None else f" The checkpoint of round {saved} is kept."
    return DivergenceError(
        f"training diverged in round {round}: a parameter or a loss is not a finite number "
        f"({rates}). The learning rate is probably too high: try a third of "
        f"it.{kept}",
        round,
    )
