"""Gossip: learners train their own models and mix them with their neighbours', without a server.

X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu, "Can decentralized algorithms outperform
centralized algorithms?", NIPS 2017, https://arxiv.org/abs/1705.09056 (D-PSGD); with a codec,
A. Koloskova, S. U. Stich, M. Jaggi, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, https://arxiv.org/abs/1902.00340, algorithm 2 (CHOCO-SGD)
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.algorithms.common import client_rate, parts
from fedjax_sim.algorithms.own_models import (
    check_models,
    check_round,
    digest_of,
    mean_of,
    stack_models,
)
from fedjax_sim.algorithms.topologies import Topology
from fedjax_sim.compression import Codec, num_bytes
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_choice, check_count, check_rates, check_shares
from fedjax_sim.core.messages import traffic
from fedjax_sim.core.task_checks import check_task, refuse_state
from fedjax_sim.core.types import Algorithm, Client, Cohort, Params, Task
from fedjax_sim.engine.client import train_step
from fedjax_sim.engine.gradients import no_losses
from fedjax_sim.engine.learners import Group, with_learners
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import Rate, as_factory, rate_of
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD
from fedjax_sim.engine.streams import MODES, Streams, batch_sizes

_ENCODE = 2**32 - 1  # folded into a learner's key of a round


class GossipState(NamedTuple):
    """The state of all learners.

    Attributes:
      learners: `x_1, ..., x_m`, each leaf `[m, ...]`.
      optimizers: their optimizer states, each leaf `[m, ...]`; these are never mixed.
      public: `x^_1, ..., x^_m`, each leaf `[m, ...]`: what all neighbours of a learner know of its
        model; `()` without a codec.
      round: `[]` int32, the number of completed rounds.
      key: PRNG key of the run; it determines the order of shared streams.
      hparams: name -> `[]` float32.
    """

    learners: Params
    optimizers: Any
    public: Params
    round: jax.Array
    key: jax.Array
    hparams: Mapping[str, jax.Array]

    @property
    def params(self) -> Params:
        """The mean of the learners' models, for evaluation; it costs no communication."""
        return mean_of(self.learners)


def gossip(
    task: Task,
    topology: Topology,
    optimizer: Any = optax.sgd,
    *,
    num_learners: int,
    batch_size: int | Sequence[int],
    client_lr: Rate = None,
    lr_decay: float = 1.0,
    local_steps: int = 1,
    codec: Codec | None = None,
    gamma: float = 1.0,
    stream: str = "repeat",
    initial: Sequence[Params] | None = None,
) -> Algorithm:
    """Trains learners that mix their models with their neighbours' after each round.

    Each client of the federation is a learner. A round is `local_steps` steps of each learner, then one
    mixing. Without a codec, `x_i <- x_i + gamma * sum over j of W_ij (x_j - x_i)`; with `gamma` 1, that
    is the weighted mean of D-PSGD. With one, as in CHOCO-SGD, learner i sends `q_i = C(x_i - x^_i)` to
    its neighbours, all take `x^_i <- x^_i + q_i`, and then
    `x_i <- x_i + gamma * sum over j of W_ij (x^_j - x^_i)`.

    Rows report `consensus`, the mean of `||x_i - mean||^2` after mixing. The ledger's `up_neighbour` are
    messages from a learner to one neighbour.

    Args:
      task: the model and its loss.
      topology: one of `fs.topologies`, such as `fs.topologies.ring()`.
      optimizer: the learners' optax optimizer, or a function from a rate to one, such as `optax.sgd`.
      num_learners: `m`, at least 2; it must equal the federation's number of clients.
      batch_size: `B`, examples per step; or a sequence of `B^i`, one for each learner.
      client_lr: the learning rate of `optimizer`; omit it for a built optimizer. It may vary without
        recompiling, as may `lr_decay` and `gamma`.
      lr_decay: decay factor per round; the rate in round t is `client_lr * lr_decay ** t`.
      local_steps: steps of each learner in a round.
      codec: what messages are encoded with, such as `fs.compression.top_k(0.01)`; None sends models.
      gamma: how far to go towards the neighbours, in [0, 1]; small for a codec that keeps little.
      stream: how learners read their rows; see `dynamic_averaging`.
      initial: `m` initial models; by default all learners start from `task.init`.

    Raises:
      ValueError: a setting is out of its range, the topology does not fit the number of learners or the
        codec, the rate is given twice or not at all, or the initial models' shapes differ.
    """
    check_task(task)
    refuse_state(task, "mixing with neighbours has no meaning for it; wanted fed_avg")
    rates = rate_of("client_lr", client_lr, optimizer) | {"lr_decay": lr_decay}
    hparams = rates | {"gamma": gamma}
    m, b = check_count("num_learners", num_learners), check_count("local_steps", local_steps)
    if m < 2:
        raise ValueError(f"num_learners is {m}; wanted at least 2, as one has no other to mix with")
    if not isinstance(topology, Topology):
        raise ValueError(f"topology is {topology!r}; wanted one such as fs.topologies.ring()")
    matrices = topology.matrices(m)
    if codec is not None and (not isinstance(codec, Codec) or codec.is_structured):
        raise ValueError(
            f"codec is {codec.name if isinstance(codec, Codec) else codec!r}; wanted None or a codec of "
            "any update, such as fs.compression.top_k(0.01)"
        )
    check_choice("stream", stream, MODES)
    streams = Streams(batch_sizes(batch_size, m), stream, None)
    check_round(m, b, streams.slots)
    check_models(initial, m, jax.eval_shape(task.init, jax.random.key(0)))
    make_optimizer = as_factory(optimizer)
    if codec is not None and (len(matrices) > 1 or not np.allclose(matrices[0], matrices[0].T)):
        raise ValueError(
            f"codec is {codec.name} on the topology {topology.name}, whose neighbours change from round "
            "to round or do not hear each other, so they do not know what was sent; wanted no codec, or "
            "a topology with one symmetric matrix, such as ring"
        )
    edges = ((matrices > 0) & ~np.eye(m, dtype=bool)).sum(axis=(1, 2)).astype(np.int32)

    def check_hparams(hparams: Mapping[str, float]) -> None:
        check_rates({name: hparams[name] for name in rates})
        check_shares({"gamma": hparams["gamma"]})

    check_hparams(hparams)

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> GossipState:
        params_key, order_key = jax.random.split(key)
        learners = stack_models(initial, m, task.init(params_key) if params is None else params)
        return GossipState(
            learners=learners,
            optimizers=jax.vmap(make_optimizer(hparams.get("client_lr", 1.0)).init)(learners),
            public=() if codec is None else trees.zeros_like(learners),
            round=jnp.zeros((), jnp.int32),
            key=order_key,
            hparams=dict(hparams),
        )

    def round_fn(key: jax.Array, state: GossipState, own: Any, data: Any, cohort: Cohort):
        def on_one_device(group: Group, own, shared, rows, key):
            t, order_key, hparams = shared
            eta, num_rows = client_rate(hparams, t, client_lr), rows[1][-1]
            w = jnp.asarray(matrices)[t % len(matrices)]
            # Rows that add up to zero, so that models which agree stay as they are despite rounding.
            pulls = w - jnp.diag(w.sum(axis=1))

            def learner(own, client: Client, key):
                x, optimizer_state, public = own
                batch, take = streams.open(client, num_rows, t * b, order_key)
                step = train_step(task, make_optimizer(eta), take, batch, key)
                carry = (x, optimizer_state, no_losses(), batch(jnp.zeros((), jnp.int32)))
                x, optimizer_state, losses, _ = jax.lax.fori_loop(0, b, step, carry)
                if codec is not None:
                    sent = codec.encode(jax.random.fold_in(key, _ENCODE), trees.subtract(x, public))
                    public = trees.add(public, codec.decode(sent))
                return (x, optimizer_state, public), losses

            (x, optimizers, public), losses = group.train(learner, own, rows, key)
            known = x if codec is None else public
            x = trees.add(x, trees.scale(group.mix(known, pulls), hparams["gamma"]))
            consensus, losses = group.gather((_distances(group, x), losses))
            losses = jax.tree.map(jnp.sum, losses)
            info = {
                "train_loss": losses.total / jnp.maximum(losses.count, 1),
                "examples": losses.examples,
                "slots": jnp.asarray(m * b * streams.slots, jnp.int32),
                "consensus": consensus.mean(),
                "finite": jnp.all(jnp.isfinite(consensus)),
            }
            return (x, optimizers, public), info

        own = (state.learners, state.optimizers, state.public)
        shared = (state.round, state.key, state.hparams)
        own, info = with_learners(on_one_device, own, shared, data, cohort, key)
        sent = jnp.asarray(edges)[state.round % len(edges)]
        info |= traffic("up_neighbour", sent)
        learners, optimizers, public = own
        state = state._replace(learners=learners, optimizers=optimizers, public=public)
        return state._replace(round=state.round + 1), (), info

    def message_bytes(state: GossipState) -> dict[str, int]:
        one = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape[1:], w.dtype), state.learners)
        if codec is None:
            return {"up_neighbour": trees.num_bytes(one)}
        return {"up_neighbour": num_bytes(jax.eval_shape(codec.encode, jax.random.key(0), one))}

    settings = {
        "algorithm": "gossip",
        "topology": {"name": topology.name} | dict(topology.settings),
        "codec": None if codec is None else codec.settings,
        "num_learners": m,
        "local_steps": b,
        "batch_size": streams.widths[0] if len(set(streams.widths)) == 1 else list(streams.widths),
        "stream": stream,
        "initial": digest_of(initial),
    }
    return Algorithm(
        init,
        round_fn,
        message_bytes,
        hparams,
        settings,
        needs_all_data=True,
        num_learners=m,
        specs=GossipState(SPREAD, SPREAD, SPREAD, *[EVERYWHERE] * 3),
        reads_own_rows=stream != "shared",
        check=lambda data, num_rounds: streams.check(data, num_rounds, b),
        check_hparams=check_hparams,
        lane_bytes=functools.partial(lane_bytes, task, make_optimizer, streams.slots),
        num_classes=task.num_classes,
        model_of=lambda state, own_k, id: jax.tree.map(lambda w: w[id], state.learners),
        parts=functools.partial(parts, task, {"optimizer": make_optimizer}),
    )


def _distances(group: Group, x: Params) -> jax.Array:
    """Returns `||x_i - mean||^2` of this device's learners, `[m / D]` float32."""
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), x)
    everybody = jnp.ones((group.size,), bool)
    mean = group.weighted_sum(x, jnp.full((group.size,), 1 / group.size), everybody)
    return jax.lax.map(lambda x_i: trees.squared_distance(x_i, mean).astype(jnp.float32), x)
