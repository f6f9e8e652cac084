"""Federated algorithms: one file and one factory per paper; `local_sgd` is the plumbing of most."""

from fedjax_sim.algorithms.common import LocalSGD, ServerState, local_sgd, round_info
from fedjax_sim.algorithms.dynamic_averaging import AveragingState, dynamic_averaging
from fedjax_sim.algorithms.fed_avg import fed_avg
from fedjax_sim.algorithms.fed_bn import fed_bn
from fedjax_sim.algorithms.fed_buff import fed_buff
from fedjax_sim.algorithms.fed_nova import fed_nova
from fedjax_sim.algorithms.fed_prox import fed_prox
from fedjax_sim.algorithms.fed_sgd import fed_sgd
from fedjax_sim.algorithms.gossip import GossipState, gossip
from fedjax_sim.algorithms.ifca import ifca
from fedjax_sim.algorithms.scaffold import scaffold
from fedjax_sim.algorithms.sgd import SGDState, sgd

__all__ = [
    "AveragingState",
    "GossipState",
    "LocalSGD",
    "SGDState",
    "ServerState",
    "dynamic_averaging",
    "fed_avg",
    "fed_bn",
    "fed_buff",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "gossip",
    "ifca",
    "local_sgd",
    "round_info",
    "scaffold",
    "sgd",
]
