"""The simulation of a federation: blocks of compiled rounds, with evaluations between them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Algorithm, Layout
from fedjax_sim.participation import Sampler
from fedjax_sim.simulation.callbacks import Callbacks
from fedjax_sim.simulation.cohorts import choose_sampler
from fedjax_sim.simulation.result import Result
from fedjax_sim.simulation.run import Run
from fedjax_sim.simulation.validation import (
    EvaluationFn,
    as_evaluators,
    check_key,
    check_kinds,
    merge_hparams,
)


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
    callbacks: Sequence[Any] = (),
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
        one part in a thousand. Callbacks to the host inside a program are not compared, nor are
        `callbacks`: they may end a run, but change none of its rounds.
      config: further JSON values that identify the run, kept in config.json. The run's own settings take
        precedence over entries of the same name.
      checkpoint_seconds: least time between two checkpoints (the last state is always saved).
      initial_params: parameters to begin with, like those of the algorithm's state; by default the
        algorithm makes them from the key.
      allow_version_change: whether to continue a run that began with another version of JAX or of this
        package. Its programs are then not compared.
      progress: whether to show a bar on a terminal and in a notebook, lines elsewhere.
      callbacks: objects with `on_evaluation(view, row)`, called in order after each evaluation; one that
        returns True ends the run with this row. See `simulation.Callback`.

    Returns:
      The final state, the rows, timing and counts. Ctrl-C ends the run after its current block of
      rounds, with a warning and a checkpoint in the workdir; the result then holds the rounds done. A
      second Ctrl-C raises KeyboardInterrupt, as the first does if the program handles Ctrl-C itself, in
      threads other than the main one, and in jobs of several processes.

    Raises:
      ValueError: a setting is out of range, the workdir belongs to another run, the data is malformed or
        needed on the devices, clients' memory does not fit, a round is too long for its counters, an
        object in `callbacks` has no `on_evaluation`, or the processes of a job differ in their settings
        or data.
      OSError: the disk of the workdir is full.
      DivergenceError: a parameter or the loss is no longer finite.
      OutOfMemoryError: a device's memory does not hold the lanes.
      ProcessLostError: another process of the job has ended.
    """
    check_kinds(algorithm, data)
    check_key(key)
    run = Run(
        algorithm,
        data,
        key=key,
        cohorts=choose_sampler(algorithm, client_fraction, clients_per_round, cohorts),
        evaluators=as_evaluators(evaluate, stop_at),
        eval_every=check_count("eval_every", eval_every),
        stop_at=stop_at,
        hparams=merge_hparams(algorithm, hparams or {}),
        layout=layout,
        data_placement=data_placement,
        home=None if workdir is None else pathlib.Path(workdir),
        config=dict(config or {}),
        checkpoint_seconds=checkpoint_seconds,
        initial_params=initial_params,
        allow_version_change=allow_version_change,
        progress=progress,
        callbacks=Callbacks(callbacks),
    )
    return run.until(check_count("num_rounds", num_rounds))
