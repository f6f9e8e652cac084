"""Participation: the choice of each round's clients."""

from fedjax_sim.participation.arrivals import arrivals, exponential, half_normal
from fedjax_sim.participation.poisson import poisson
from fedjax_sim.participation.sampler import Sampler
from fedjax_sim.participation.uniform import cohort_size, uniform

__all__ = [
    "Sampler",
    "arrivals",
    "cohort_size",
    "exponential",
    "half_normal",
    "poisson",
    "uniform",
]
