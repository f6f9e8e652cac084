"""Federated algorithms: one paper, one file, one factory each."""

from fedjax_sim.algorithms.fed_avg import FedAvgState, fed_avg
from fedjax_sim.algorithms.fed_sgd import FedSGDState, fed_sgd
from fedjax_sim.algorithms.sgd import SGDState, sgd

__all__ = ["FedAvgState", "FedSGDState", "SGDState", "fed_avg", "fed_sgd", "sgd"]
