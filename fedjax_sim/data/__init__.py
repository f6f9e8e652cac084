"""Data: named sets, partitions among clients, and the federation that simulations take."""

from fedjax_sim.data.clients import from_clients, split
from fedjax_sim.data.dataset import Dataset, from_arrays
from fedjax_sim.data.description import Description, Spread
from fedjax_sim.data.drift import Drift, drift_steps, label_drift, rotation_drift
from fedjax_sim.data.feature_skew import add_noise, rotate
from fedjax_sim.data.federate import federate
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.leaf import from_leaf
from fedjax_sim.data.niid_bench import dirichlet_sizes, label_subsets
from fedjax_sim.data.partition import (
    Assignment,
    Partition,
    dirichlet,
    iid,
    lognormal,
    natural,
    shards,
)
from fedjax_sim.data.sources import load
from fedjax_sim.data.sources.graphical import random_graphical_model
from fedjax_sim.data.sources.message_files import read_messages
from fedjax_sim.data.sources.messages import Messages, messages
from fedjax_sim.data.sources.synthetic import synthetic
from fedjax_sim.data.sources.synthetic_logistic import synthetic_logistic
from fedjax_sim.data.storage.stored import open_federated, save_federated
from fedjax_sim.data.storage.unpacking import MAX_UNPACKED_BYTES
from fedjax_sim.data.tables import from_frame, from_huggingface

__all__ = [
    "MAX_UNPACKED_BYTES",
    "Assignment",
    "Dataset",
    "Description",
    "Drift",
    "FederatedData",
    "Messages",
    "Partition",
    "Spread",
    "add_noise",
    "dirichlet",
    "dirichlet_sizes",
    "drift_steps",
    "federate",
    "from_arrays",
    "from_clients",
    "from_frame",
    "from_huggingface",
    "from_leaf",
    "iid",
    "label_drift",
    "label_subsets",
    "load",
    "lognormal",
    "messages",
    "natural",
    "open_federated",
    "random_graphical_model",
    "read_messages",
    "rotate",
    "rotation_drift",
    "save_federated",
    "shards",
    "split",
    "synthetic",
    "synthetic_logistic",
]
