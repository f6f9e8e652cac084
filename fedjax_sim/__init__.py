"""Simulates federated learning: every sampled client of a round in one compiled program.

For example:

    import jax, optax
    import fedjax_sim as fs

    train, test = fs.data.load("mnist5k")
    clients = fs.data.federate(train, fs.data.shards(num_clients=100, shards_per_client=2, seed=0))
    task = fs.models.mnist_2nn()
    algorithm = fs.fed_avg(task, optax.sgd, client_lr=0.1, local_epochs=1, batch_size=10)
    result = fs.simulate(algorithm, clients, key=jax.random.key(0), num_rounds=100,
                         evaluate=fs.evaluator(task, test))
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_sim import (
    aggregation,
    algorithms,
    compression,
    data,
    engine,
    participation,
    reporting,
    runtime,
    simulation,
)
from fedjax_sim.aggregation import aggregate
from fedjax_sim.algorithms import (
    dynamic_averaging,
    fed_avg,
    fed_bn,
    fed_buff,
    fed_nova,
    fed_prox,
    fed_sgd,
    gossip,
    ifca,
    protocols,
    scaffold,
    sgd,
    topologies,
)
from fedjax_sim.core import checks, messages
from fedjax_sim.core.types import (
    Algorithm,
    Client,
    ClientOutput,
    Cohort,
    Layout,
    Task,
    Variables,
)
from fedjax_sim.engine import local_training, train_clients
from fedjax_sim.runtime import use_all_cores
from fedjax_sim.simulation import (
    DivergenceError,
    Result,
    SweepResult,
    evaluator,
    load_run,
    predict,
    rounds_to_target,
    simulate,
    sweep,
)
from fedjax_sim.version import VERSION

if TYPE_CHECKING:
    from fedjax_sim import models

__version__ = VERSION

# JAX fixes its devices when it makes its first array, and only an import surely comes before that.
use_all_cores()

__all__ = [
    "Algorithm",
    "Client",
    "ClientOutput",
    "Cohort",
    "DivergenceError",
    "Layout",
    "Result",
    "SweepResult",
    "Task",
    "Variables",
    "aggregate",
    "aggregation",
    "algorithms",
    "checks",
    "compression",
    "data",
    "dynamic_averaging",
    "engine",
    "evaluator",
    "fed_avg",
    "fed_bn",
    "fed_buff",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "gossip",
    "ifca",
    "load_run",
    "local_training",
    "messages",
    "models",
    "participation",
    "predict",
    "protocols",
    "reporting",
    "rounds_to_target",
    "runtime",
    "scaffold",
    "sgd",
    "simulate",
    "simulation",
    "sweep",
    "topologies",
    "train_clients",
    "use_all_cores",
]


def __getattr__(name: str) -> Any:
    """Imports `models` at its first use, as flax takes as long as all the rest of the package."""
    if name == "models":
        return importlib.import_module("fedjax_sim.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
