"""Protocols of model averaging: when learners talk, and to whom. One operator, one file."""

from fedjax_sim.algorithms.protocols.common import Meeting, Protocol, View
from fedjax_sim.algorithms.protocols.dynamic import dynamic, hedged
from fedjax_sim.algorithms.protocols.fed_avg import fed_avg
from fedjax_sim.algorithms.protocols.none import none
from fedjax_sim.algorithms.protocols.periodic import continuous, periodic

__all__ = [
    "Meeting",
    "Protocol",
    "View",
    "continuous",
    "dynamic",
    "fed_avg",
    "hedged",
    "none",
    "periodic",
]
