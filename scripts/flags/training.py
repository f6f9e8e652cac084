"""Flags of the algorithm, its optimizers and its aggregation, and the algorithm that they define."""

import functools
import inspect
import types
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

import fedjax_sim as fs
from flags import calls, kinds

# Parameter of an algorithm -> the flag that gives it, here or in a script.
_FLAG_OF = {
    "client_optimizer": "client_optimizer",
    "optimizer": "client_optimizer",
    "server_optimizer": "server_optimizer",
    "server_lr": "server_lr",
    "aggregator": "aggregator",
    "protocol": "protocol",
    "drift": "drift",
    "local_epochs": "local_epochs",
    "batch_size": "batch_size",
    "client_lr": "client_lr",
}
_ELSEWHERE = (*_FLAG_OF, "task", "num_learners")
_INSIDE = calls.functions_of(
    [fs.topologies, fs.compression], [fs.topologies.Topology, fs.compression.Codec]
)
_ALGORITHMS = calls.Calls(
    "algorithm",
    calls.functions_of([fs.algorithms], [fs.Algorithm], _ELSEWHERE, _INSIDE),
    _ELSEWHERE,
    _INSIDE,
)
_OPTIMIZERS = calls.Calls(
    "optimizer",
    {
        name: function
        for name, function in vars(optax).items()
        if isinstance(function, types.FunctionType | functools.partial)
        and next(iter(inspect.signature(function).parameters), None) == "learning_rate"
        and not name.startswith(("_", "scale_by_"))
    },
    elsewhere=("learning_rate",),
)
_STAGES = calls.Calls(
    "aggregation stage",
    calls.functions_of(
        [fs.aggregation, fs.compression],
        [fs.aggregation.Stage, fs.compression.Codec, fs.aggregation.End],
    ),
)
# Where scripts have always differed from the library; streams that end would be too short by default.
_DEFAULTS = {"dynamic_averaging": {"stream": "repeat", "weighting": "examples"}}


def _optimizer(flag: flags.FlagHolder) -> Callable[[Any], optax.GradientTransformation]:
    """Returns the function from a learning rate to an optimizer that a flag names.

    Raises:
      ValueError: the optimizer refuses its arguments, or needs more than gradients and parameters.
    """
    call = _OPTIMIZERS.read(flag.value)
    make = functools.partial(call.function, **call.arguments) if call.arguments else call.function

    def step(rate, params):
        optimizer = make(rate)
        return optimizer.update(params, optimizer.init(params), params)

    params = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax's own numbers are not part of a program
            jax.eval_shape(step, jax.ShapeDtypeStruct((), jnp.float32), params)
    except Exception as error:  # whatever optax makes of its arguments
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--{flag.name}={flag.value} cannot take a step ({reason}); wanted another one"
        ) from None
    return make


@functools.cache
def _aggregator(text: str) -> fs.aggregation.Aggregator:
    """Returns the aggregator that stages with | between them make.

    Raises:
      ValueError: a stage is unknown or refuses its arguments, or the chain makes no sense.
    """
    chain = [_STAGES.make(part) for part in calls.split(text, "|")]
    *stages, end = chain if isinstance(chain[-1], fs.aggregation.End) else (*chain, None)
    early = [stage.name for stage in stages if isinstance(stage, fs.aggregation.End)]
    if early:
        raise ValueError(f"{early[0]} combines the updates of all clients; wanted it last, and once")
    return fs.aggregate(*stages, end=end)


ALGORITHM = kinds.define(
    calls.Written(_ALGORITHMS.read),
    "algorithm",
    "fed_avg",
    "Algorithm and its own arguments, such as fed_prox:mu=0.1 or fed_avg:lr_decay=0.99 (a factor on "
    "--client_lr after each round). sgd is the baseline: sequential, on all clients' data pooled. In "
    "dynamic_averaging and gossip, as in gossip:topology=ring,codec=top_k(0.01),gamma=0.1, each client "
    f"keeps a model of its own. Known: {_ALGORITHMS.describe()}.",
)
_CLIENT_OPTIMIZER = kinds.define(
    calls.Written(_OPTIMIZERS.read),
    "client_optimizer",
    "sgd",
    "Optimizer of the clients, at the rate --client_lr: any of optax, such as sgd:momentum=0.9 or "
    "adam:b1=0.8. It begins anew in each round.",
)
_SERVER_OPTIMIZER = kinds.define(
    calls.Written(_OPTIMIZERS.read),
    "server_optimizer",
    "sgd",
    "Optimizer of the server, whose gradient is the old model less the clients' average: any of optax, "
    "such as adam:b2=0.99,eps=1e-3. All but sgd need --server_lr.",
)
_SERVER_LR = kinds.define(
    kinds.RATE,
    "server_lr",
    None,
    "Learning rate of the server's optimizer. By default 1 for sgd, so that the average replaces the "
    "model; for adam begin with 0.01.",
)
_AGGREGATOR = kinds.define(
    calls.Written(_aggregator),
    "aggregator",
    None,
    "What lies between the clients' updates and the server's step, from left to right: "
    '"clip:1.0,adaptive=0.5 | gaussian:0.8 | mean:uniform" adds noise, "top_k:0.01 | quantize:8" '
    "compresses, median resists attackers. By default the weighted mean. Known: "
    f"{_STAGES.describe()}.",
)


def chosen() -> calls.Call:
    """Returns the algorithm that --algorithm names, with the arguments given there."""
    return _ALGORITHMS.read(ALGORITHM.value)


def _is_given(flag: str) -> bool:
    return flag in flags.FLAGS and bool(flags.FLAGS[flag].present)


def lr_decay() -> float:
    """Returns the factor on the clients' rate after each round."""
    return chosen().arguments.get("lr_decay", 1.0)


def uses(flag: str) -> bool:
    """Says whether the algorithm has a parameter that a flag gives."""
    return any(chosen().takes(parameter) for parameter, given in _FLAG_OF.items() if given == flag)


def unused(also_used: Collection[str] = ()) -> list[str]:
    """Returns the flags that mean nothing to the algorithm, nor to the script by `also_used`."""
    return [flag for flag in dict.fromkeys(_FLAG_OF.values()) if not (uses(flag) or flag in also_used)]


def allows_full_batches() -> bool:
    """Says whether the algorithm's batches may be all of a client's examples."""
    call = chosen()
    if not call.takes("batch_size"):
        return True
    return inspect.signature(call.function, eval_str=True).parameters["batch_size"].annotation is float


def algorithm(task: fs.Task, num_clients: int, **settings: Any) -> fs.Algorithm:
    """Returns the algorithm that the flags define.

    Args:
      task: the model and its loss.
      num_clients: number of clients.
      **settings: values of further parameters, for the algorithms that take them.

    Raises:
      ValueError: a setting is out of its range, or two do not go together.
    """
    call = chosen()
    optimizer, aggregator = _optimizer(_CLIENT_OPTIMIZER), _AGGREGATOR.value
    offered = {
        "task": task,
        "num_learners": num_clients,
        "client_optimizer": optimizer,
        "optimizer": optimizer,
        "server_optimizer": _optimizer(_SERVER_OPTIMIZER),
        "server_lr": _SERVER_LR.value,
        "aggregator": None if aggregator is None else _aggregator(aggregator),
    }
    try:
        return call.make(**offered | _DEFAULTS.get(call.name, {}) | settings)
    except ValueError as error:
        given = [flag for flag in dict.fromkeys(_FLAG_OF.values()) if _is_given(flag)]
        named = " ".join(f"--{flag}={flags.FLAGS[flag].value}" for flag in ("algorithm", *given))
        raise ValueError(f"{named}: {error}") from None


def check(*, also_used: Collection[str] = (), **settings: Any) -> fs.Algorithm:
    """Checks the flags by making the algorithm for a small model, before any data is read.

    Args:
      also_used: flags that the script uses although no parameter of the algorithm bears their name.
      **settings: see `algorithm`; a stand-in for what depends on data.

    Returns:
      The algorithm for the small model.

    Raises:
      ValueError: the algorithm does not use a flag that is given, or see `algorithm`.
    """
    for flag in unused(also_used):
        if _is_given(flag):
            raise ValueError(f"--{flag} is given, but {chosen().name} does not use it; leave it out")
    is_sgd = _optimizer(_SERVER_OPTIMIZER) is optax.sgd
    if uses("server_lr") and _SERVER_LR.value is None and not is_sgd:
        raise ValueError(f"--server_optimizer={_SERVER_OPTIMIZER.value} needs --server_lr, its rate")
    return algorithm(fs.models.logistic_regression(2, (2,)), 4, **settings)
