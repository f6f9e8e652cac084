"""Runs of many rounds: evaluation, metrics, checkpoints, timing."""

from fedjax_sim.simulation.compilations import CompilationCounter
from fedjax_sim.simulation.evaluate import accuracy, accuracy_of_each_client, client_accuracy
from fedjax_sim.simulation.result import Result, rounds_to_target
from fedjax_sim.simulation.simulate import DivergenceError, cohort_size, simulate

__all__ = [
    "CompilationCounter",
    "DivergenceError",
    "Result",
    "accuracy",
    "accuracy_of_each_client",
    "client_accuracy",
    "cohort_size",
    "rounds_to_target",
    "simulate",
]
