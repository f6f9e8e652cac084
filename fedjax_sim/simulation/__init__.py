"""Runs of many rounds: evaluation, metrics, checkpoints, timing."""

from fedjax_sim.simulation.callbacks import Callback, EarlyStopping, KeepBest
from fedjax_sim.simulation.divergence import DivergenceError
from fedjax_sim.simulation.evaluate import (
    client_evaluator,
    cluster_evaluator,
    each_client_evaluator,
    evaluator,
)
from fedjax_sim.simulation.link import Link
from fedjax_sim.simulation.loaded import LoadedRun, load_run
from fedjax_sim.simulation.own_models import own_model_evaluator
from fedjax_sim.simulation.predictions import predict, prediction_evaluator
from fedjax_sim.simulation.recorded import rounds_to_target
from fedjax_sim.simulation.result import Result, SweepResult, SweepRun
from fedjax_sim.simulation.simulate import simulate
from fedjax_sim.simulation.sweep import UnfinishedError, sweep
from fedjax_sim.simulation.sweep_grid import check_sweep
from fedjax_sim.simulation.view import View, of_view

__all__ = [
    "Callback",
    "DivergenceError",
    "EarlyStopping",
    "KeepBest",
    "Link",
    "LoadedRun",
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
    "load_run",
    "of_view",
    "own_model_evaluator",
    "predict",
    "prediction_evaluator",
    "rounds_to_target",
    "simulate",
    "sweep",
]
