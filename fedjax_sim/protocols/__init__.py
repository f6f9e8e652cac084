"""Protocols of model averaging: when learners talk, and to whom. One operator, one file."""

from fedjax_sim.protocols.common import Meeting, Protocol, View
from fedjax_sim.protocols.dynamic import dynamic, hedged
from fedjax_sim.protocols.fed_avg import fed_avg
from fedjax_sim.protocols.none import none
from fedjax_sim.protocols.periodic import continuous, periodic

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
