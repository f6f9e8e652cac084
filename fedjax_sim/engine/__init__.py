"""Training of clients inside the compiled round; no other code has a client axis."""

from fedjax_sim.core.types import ABSENT
from fedjax_sim.engine.chunks import map_clients
from fedjax_sim.engine.client import local_training
from fedjax_sim.engine.collectives import CohortResult
from fedjax_sim.engine.full_data import full_gradient, full_loss
from fedjax_sim.engine.gradients import mean_gradient
from fedjax_sim.engine.placement import place
from fedjax_sim.engine.queues import train_clients
from fedjax_sim.engine.results import WeightedSum, weigh
from fedjax_sim.engine.sequence import sequence
from fedjax_sim.engine.work import ClientWork

__all__ = [
    "ABSENT",
    "ClientWork",
    "CohortResult",
    "WeightedSum",
    "full_gradient",
    "full_loss",
    "local_training",
    "map_clients",
    "mean_gradient",
    "place",
    "sequence",
    "train_clients",
    "weigh",
]
