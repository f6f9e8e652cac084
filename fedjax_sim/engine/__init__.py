"""Trains clients inside the compiled round: the only code with an axis of clients."""

from fedjax_sim.engine.chunks import CohortSums, map_clients
from fedjax_sim.engine.client import ClientWork, full_gradient, local_training
from fedjax_sim.engine.placement import place
from fedjax_sim.engine.queues import train_clients

__all__ = [
    "ClientWork",
    "CohortSums",
    "full_gradient",
    "local_training",
    "map_clients",
    "place",
    "train_clients",
]
