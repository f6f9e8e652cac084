"""Protocols of model averaging: which learners synchronise, and when. One operator per file."""

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
