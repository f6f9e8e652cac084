"""Runs of many rounds: evaluation, metrics, checkpoints, timing."""

from fedjax_sim.simulation.evaluate import (
    client_evaluator,
    cluster_evaluator,
    each_client_evaluator,
    evaluator,
)
from fedjax_sim.simulation.link import Link
from fedjax_sim.simulation.predictions import predict, prediction_evaluator
from fedjax_sim.simulation.result import Result, SweepResult, SweepRun, rounds_to_target
from fedjax_sim.simulation.simulate import DivergenceError, simulate
from fedjax_sim.simulation.sweep import UnfinishedError, check_sweep, sweep
from fedjax_sim.simulation.view import View, of_view

__all__ = [
    "DivergenceError",
    "Link",
    "Result",
    "SweepResult",
    "SweepRun",
    "UnfinishedError",
    "View",
    "check_sweep",
    "client_evaluator",
    "cluster_evaluator",
    "each_client_evaluator",
    "evaluator",
    "of_view",
    "predict",
    "prediction_evaluator",
    "rounds_to_target",
    "simulate",
    "sweep",
]
