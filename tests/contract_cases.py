"""The cases of the contract: every algorithm, and chains of stages drawn at random."""

import contextlib
import random

import batch_norm
import ditto
import jax
import numpy as np
import toys

import fedjax_sim as fs
from fedjax_sim import aggregation, compression
from fedjax_sim.runtime import processes
from fedjax_sim.simulation import client_memory
from fedjax_sim.simulation.cohorts import own_state

ALGORITHMS = {
    "dynamic_averaging": lambda task: fs.dynamic_averaging(
        task,
        fs.protocols.dynamic(delta=0.5, period=3),
        num_learners=len(toys.SIZES),
        batch_size=4,
        client_lr=0.1,
        stream="shared",
    ),
    "fed_avg": lambda task: fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4),
    "fed_bn": lambda task: fs.fed_bn(batch_norm.task(), client_lr=0.1, local_epochs=1, batch_size=4),
    "fed_buff": lambda task: fs.fed_buff(
        task, concurrency=6, buffer=3, client_lr=0.1, local_epochs=1, batch_size=4
    ),
    "fed_nova": lambda task: fs.fed_nova(task, client_lr=0.1, local_epochs=1, batch_size=4),
    "fed_prox": lambda task: fs.fed_prox(
        task, client_lr=0.1, mu=0.5, local_epochs=2, batch_size=4, stragglers=0.5
    ),
    "gossip": lambda task: fs.gossip(
        task,
        fs.topologies.ring(),
        num_learners=len(toys.SIZES),
        batch_size=4,
        client_lr=0.1,
        codec=compression.quantize(6),
        gamma=0.5,
        stream="shared",
    ),
    "ifca": lambda task: fs.ifca(task, num_clusters=2, client_lr=0.1, local_epochs=1, batch_size=4),
    "scaffold": lambda task: fs.scaffold(task, client_lr=0.1, local_epochs=2, batch_size=4),
    "fed_sgd": lambda task: fs.fed_sgd(task, client_lr=0.1),
    "sgd": lambda task: fs.sgd(task, client_lr=0.1, batch_size=4, steps_per_round=5),
}

_CODECS = (
    lambda: compression.top_k(0.2),
    lambda: compression.quantize(6),
    lambda: compression.top_k(0.2) >> compression.quantize(6),
)
_STAGES = (
    lambda draw: aggregation.clip(0.2),
    lambda draw: aggregation.clip(0.2, adaptive=0.5),
    lambda draw: aggregation.gaussian(0.3),
    lambda draw: draw.choice(_CODECS)(),
    lambda draw: aggregation.error_feedback(draw.choice(_CODECS)()),
)
_ENDS = (
    lambda: aggregation.mean("uniform"),
    lambda: aggregation.mean("examples"),
    aggregation.median,
    lambda: aggregation.trimmed_mean(0.2),
    lambda: aggregation.krum(num_byzantine=1),
)


def _drawn_chains(count, seed):
    """The first chains of stages, of those that this seed draws, that make sense and differ."""
    draw, chains = random.Random(seed), {}
    for _ in range(100):
        stages = [draw.choice(_STAGES)(draw) for _ in range(draw.randint(1, 3))]
        with contextlib.suppress(ValueError):
            aggregator = fs.aggregate(*stages, end=draw.choice(_ENDS)())
            chains.setdefault(str(aggregator.settings), aggregator)
        if len(chains) == count:
            return list(chains.values())
    raise AssertionError(f"of 100 chains only {list(chains)} make sense")


def _through(aggregator):
    return lambda task: fs.fed_avg(
        task, client_lr=0.1, local_epochs=1, batch_size=4, aggregator=aggregator
    )


CASES = (
    ALGORITHMS
    | {"ditto": lambda task: ditto.ditto(task, client_lr=0.1, pull=0.5, local_epochs=1, batch_size=4)}
    | {f"chain {i}": _through(chain) for i, chain in enumerate(_drawn_chains(5, seed=2))}
)
SEED, NUM_ROUNDS = 3, 4
SETTINGS = {"client_fraction": 0.5, "eval_every": 2}


def linear():
    """Logistic regression, which compiles quickly."""
    return fs.models.classifier(fs.models.MLP((toys.CLASSES,)), (toys.FEATURES,))


def settings_of(algorithm):
    """How a case is run, whatever the layout."""
    own_cohorts = algorithm.cohorts is not None
    return {
        name: value for name, value in SETTINGS.items() if name != "client_fraction" or not own_cohorts
    }


def run(algorithm, data, num_rounds=NUM_ROUNDS, **settings):
    """Runs a case."""
    key = jax.random.key(SEED)
    return fs.simulate(
        algorithm, data, key=key, num_rounds=num_rounds, **(settings_of(algorithm) | settings)
    )


def outcome(state, rows, num_clients):
    """Returns the state, the clients' memory and the rows of a run, as arrays by name."""
    clients = getattr(state, "clients", ())
    if hasattr(clients, "rows"):
        clients = clients.rows(range(num_clients))
    counted = [
        {
            name: np.nan if value is None else value
            for name, value in row.items()
            if "seconds" not in name
        }
        for row in rows
    ]
    kept = client_memory.without_keys((own_state(state), clients))
    named = jax.tree_util.tree_leaves_with_path((kept, counted))
    return {jax.tree_util.keystr(path): processes.fetch(leaf) for path, leaf in named}
