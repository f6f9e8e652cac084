"""Simulates federated learning: every sampled client of a round in one compiled program.

import jax, optax
import fedjax_sim as fs

fs.use_all_cores()
train, test = fs.data.load("mnist5k")
clients = fs.data.federate(train, fs.data.shards(num_clients=100, shards_per_client=2, seed=0))
task = fs.models.mnist_2nn()
algorithm = fs.fed_avg(task, optax.sgd, client_lr=0.1, local_epochs=1, batch_size=10)
result = fs.simulate(algorithm, clients, key=jax.random.key(0), num_rounds=100,
                     evaluate=fs.accuracy(task, test))
"""

from fedjax_sim import data, experiment, models, protocols
from fedjax_sim.algorithms import dynamic_averaging, fed_avg, fed_sgd, sgd
from fedjax_sim.base import (
    Algorithm,
    Client,
    ClientOutput,
    Cohort,
    Layout,
    Task,
)
from fedjax_sim.client import full_gradient, local_training
from fedjax_sim.devices import available_cores, default_layout, layout_for, use_all_cores
from fedjax_sim.lanes import map_clients, place
from fedjax_sim.ledger import exchange, model_exchange, traffic
from fedjax_sim.naming import choose
from fedjax_sim.processes import ProcessLostError, connect, is_first, wait_for_all
from fedjax_sim.queues import train_clients
from fedjax_sim.simulation import (
    CompilationCounter,
    DivergenceError,
    Link,
    OutOfMemoryError,
    Result,
    SweepResult,
    SweepRun,
    UnfinishedError,
    accuracy,
    accuracy_of_each_client,
    check_sweep,
    client_accuracy,
    cohort_size,
    rounds_to_target,
    simulate,
    sweep,
)
from fedjax_sim.version import VERSION

__version__ = VERSION

__all__ = [
    "Algorithm",
    "Client",
    "ClientOutput",
    "Cohort",
    "CompilationCounter",
    "DivergenceError",
    "Layout",
    "Link",
    "OutOfMemoryError",
    "ProcessLostError",
    "Result",
    "SweepResult",
    "SweepRun",
    "Task",
    "UnfinishedError",
    "accuracy",
    "accuracy_of_each_client",
    "available_cores",
    "check_sweep",
    "choose",
    "client_accuracy",
    "cohort_size",
    "connect",
    "data",
    "default_layout",
    "dynamic_averaging",
    "exchange",
    "experiment",
    "fed_avg",
    "fed_sgd",
    "full_gradient",
    "is_first",
    "layout_for",
    "local_training",
    "map_clients",
    "model_exchange",
    "models",
    "place",
    "protocols",
    "rounds_to_target",
    "sgd",
    "simulate",
    "sweep",
    "traffic",
    "train_clients",
    "use_all_cores",
    "wait_for_all",
]
