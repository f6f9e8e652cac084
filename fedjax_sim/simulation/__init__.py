"""Runs of many rounds: evaluation, metrics, checkpoints, timing."""

from fedjax_sim.simulation.compilations import CompilationCounter
from fedjax_sim.simulation.evaluate import accuracy, accuracy_of_each_client, client_accuracy
from fedjax_sim.simulation.faults import OutOfMemoryError
from fedjax_sim.simulation.link import Link
from fedjax_sim.simulation.result import Result, SweepResult, SweepRun, rounds_to_target
from fedjax_sim.simulation.simulate import DivergenceError, cohort_size, simulate
from fedjax_sim.simulation.sweep import UnfinishedError, check_sweep, sweep

__all__ = [
    "CompilationCounter",
    "DivergenceError",
    "Link",
    "OutOfMemoryError",
    "Result",
    "SweepResult",
    "SweepRun",
    "UnfinishedError",
    "accuracy",
    "accuracy_of_each_client",
    "check_sweep",
    "client_accuracy",
    "cohort_size",
    "rounds_to_target",
    "simulate",
    "sweep",
]
