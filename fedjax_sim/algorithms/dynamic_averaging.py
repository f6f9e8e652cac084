"""Dynamic model averaging: learners on their own streams, synchronised by a protocol.

M. Kamp, L. Adilova, J. Sicking, F. Hüger, P. Schlicht, T. Wirtz, S. Wrobel, "Efficient decentralized
deep learning by dynamic model averaging", ECML-PKDD 2018, https://arxiv.org/abs/1807.03210. The paper's
update sums a batch's gradients, ours averages them, so its learning rate is ours divided by B.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.common import client_rate, parts
from fedjax_sim.algorithms.own_models import (
    check_models,
    check_round,
    digest_of,
    mean_of,
    stack_models,
)
from fedjax_sim.algorithms.protocols import Protocol, View
from fedjax_sim.core import trees
from fedjax_sim.core.checks import check_choice, check_count, check_rates
from fedjax_sim.core.task_checks import check_task, refuse_state
from fedjax_sim.core.types import Algorithm, Client, Cohort, Params, Task
from fedjax_sim.engine.client import train_step
from fedjax_sim.engine.gradients import no_losses
from fedjax_sim.engine.learners import Group, with_learners
from fedjax_sim.engine.memory import lane_bytes
from fedjax_sim.engine.optimizers import Rate, as_factory, rate_of
from fedjax_sim.engine.placement import EVERYWHERE, SPREAD
from fedjax_sim.engine.streams import MODES, Streams, batch_sizes

WEIGHTINGS = ("uniform", "examples")
_REQUEST_BYTES = 4  # the round number in a request for a learner's model
_COUNT_BYTES = 4  # the number of examples, sent with a model when weighting by examples


class AveragingState(NamedTuple):
    """The state of all learners and their coordinator.

    Attributes:
      learners: `f_1, ..., f_m`, each leaf `[m, ...]`.
      optimizers: their optimizer states, each leaf `[m, ...]`; these are never averaged.
      seen: `[m]` int32, `B^i`, examples seen since a learner's last synchronisation.
      reference: `r`, the reference model.
      violations: `[]` int32, `v`, the violation counter.
      round: `[]` int32, the number of completed rounds.
      key: PRNG key of the run; it determines the order of shared streams.
      hparams: name -> `[]` float32.
    """

    learners: Params
    optimizers: Any
    seen: jax.Array
    reference: Params
    violations: jax.Array
    round: jax.Array
    key: jax.Array
    hparams: Mapping[str, jax.Array]

    @property
    def params(self) -> Params:
        """The mean of the learners' models, for evaluation; it costs no communication."""
        return mean_of(self.learners)


def dynamic_averaging(
    task: Task,
    protocol: Protocol,
    optimizer: Any = optax.sgd,
    *,
    num_learners: int,
    batch_size: int | Sequence[int],
    client_lr: Rate = None,
    lr_decay: float = 1.0,
    weighting: str = "uniform",
    stream: str = "once",
    drift: Any = None,
    initial: Sequence[Params] | None = None,
) -> Algorithm:
    """Trains learners on their streams, one batch per step; every `b` steps a protocol may average them.

    Each client of the federation is a learner, and its rows, in order, are its stream. A batch's loss is
    measured before the model learns from it. A round is the `b` steps up to a meeting; all learners
    participate, whatever the client fraction of `simulate`. Rows report `cumulative_loss`, the sum of
    all examples' losses so far, beside the ledger.

    Args:
      task: the model and its loss.
      protocol: one of `fedjax_sim.algorithms.protocols`, such as `dynamic(delta=0.7, period=10)`.
      optimizer: the learners' optax optimizer, or a function from a rate to one, such as `optax.sgd`.
      num_learners: `m`, at least 2; it must equal the federation's number of clients.
      batch_size: `B`, examples per step; or a sequence of `B^i`, one for each learner.
      client_lr: the learning rate of `optimizer`; omit it for a built optimizer, such as
        `optax.adam(0.001)`. It may vary without recompiling, as may `lr_decay` and the protocol's
        `delta` or `fraction`.
      lr_decay: decay factor per round; the rate in round t is `client_lr * lr_decay ** t`.
      weighting: "uniform" for plain means, "examples" for means weighted by the examples that each
        learner has seen since its last synchronisation (the paper's algorithm 2).
      stream: "once" refuses to run past the end of a learner's rows; "repeat" starts again at the first
        row; "shared" pools all clients' rows, and each learner makes repeated passes over the pool, each
        in its own random order, skipping the rows that would not fill a batch.
      drift: a change of batches over time, such as `fedjax_sim.data.label_drift(...)`.
      initial: `m` initial models; by default all learners start from `task.init`, which is the first
        reference in either case.

    Raises:
      ValueError: a setting is out of its range, the rate is given twice or not at all, or the initial
        models' shapes differ.
    """
    check_task(task)
    refuse_state(task, "the distance of two models has no meaning for it; wanted fed_avg")
    rates = rate_of("client_lr", client_lr, optimizer) | {"lr_decay": lr_decay}
    check_rates(rates)
    m, b = check_count("num_learners", num_learners), protocol.period
    if m < 2:
        raise ValueError(f"num_learners is {m}; wanted at least 2, as one has no other to average with")
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("stream", stream, MODES)
    streams = Streams(batch_sizes(batch_size, m), stream, drift)
    check_round(m, b, streams.slots)
    check_models(initial, m, jax.eval_shape(task.init, jax.random.key(0)))
    make_optimizer = as_factory(optimizer)

    def init(key: jax.Array, hparams: Mapping, num_clients: int, params: Any = None) -> AveragingState:
        params_key, order_key = jax.random.split(key)
        reference = task.init(params_key) if params is None else params
        learners = stack_models(initial, m, reference)
        zero = jnp.zeros((), jnp.int32)
        return AveragingState(
            learners=learners,
            optimizers=jax.vmap(make_optimizer(hparams.get("client_lr", 1.0)).init)(learners),
            seen=jnp.zeros((m,), jnp.int32),
            reference=reference,
            violations=zero,
            round=zero,
            key=order_key,
            hparams=dict(hparams),
        )

    def round_fn(key: jax.Array, state: AveragingState, own: Any, data: Any, cohort: Cohort):
        def on_one_device(group: Group, own, shared, rows, key):
            reference, violations, t, order_key, hparams = shared
            eta = client_rate(hparams, t, client_lr)
            step_key, meeting_key = jax.random.split(key)
            num_rows = rows[1][-1]

            def learner(own, client: Client, key):
                f, optimizer_state, seen = own
                batch, take = streams.open(client, num_rows, t * b, order_key)
                step = train_step(task, make_optimizer(eta), take, batch, key)
                carry = (f, optimizer_state, no_losses(), batch(jnp.zeros((), jnp.int32)))
                f, optimizer_state, losses, _ = jax.lax.fori_loop(0, b, step, carry)
                # Computed here rather than at the meeting, while the model is still in the cache.
                distance = trees.squared_distance(f, reference)
                return (f, optimizer_state, seen + losses.examples), (losses, distance)

            (learners, optimizers, seen), reports = group.train(learner, own, rows, step_key)
            losses, distances, everybody_seen = group.gather((*reports, seen))
            weights = jnp.ones((m,)) if weighting == "uniform" else everybody_seen.astype(jnp.float32)

            def weighted_sum(members):
                return group.weighted_sum(learners, weights, members)

            view = View(distances, weights, reference, violations, weighted_sum)
            meeting = protocol.meet(meeting_key, view, hparams)
            own = (
                group.assign(learners, meeting.members, meeting.mean),
                optimizers,
                group.assign(seen, meeting.members, jnp.zeros((), jnp.int32)),
            )
            losses = jax.tree.map(jnp.sum, losses)
            info = {
                "train_loss": losses.total / jnp.maximum(losses.count, 1),
                "cumulative_loss": losses.total,
                "examples": losses.examples,
                "slots": jnp.asarray(m * b * streams.slots, jnp.int32),
                "finite": jnp.all(jnp.isfinite(distances)),
            } | meeting.traffic
            return own, (meeting.reference, meeting.violations, info)

        own = (state.learners, state.optimizers, state.seen)
        shared = (state.reference, state.violations, state.round, state.key, state.hparams)
        own, (reference, violations, info) = with_learners(on_one_device, own, shared, data, cohort, key)
        memory = {"reference": reference, "violations": violations, "round": state.round + 1}
        learners, optimizers, seen = own
        return state._replace(learners=learners, optimizers=optimizers, seen=seen, **memory), (), info

    def message_bytes(state: AveragingState) -> dict[str, int]:
        model = trees.num_bytes(state.reference)
        count = _COUNT_BYTES if weighting == "examples" else 0
        sizes = {
            "up_model": model + count,
            "up_violation": model + count,
            "down_model": model,
            "down_request": _REQUEST_BYTES,
        }
        return {kind: sizes[kind] for kind in protocol.kinds}

    def check_hparams(hparams: Mapping[str, float]) -> None:
        check_rates({name: hparams[name] for name in rates})
        protocol.check({name: hparams[name] for name in protocol.hparams})

    def check(data: Any, num_rounds: int) -> None:
        streams.check(data, num_rounds, b)

    settings = {
        "algorithm": "dynamic_averaging",
        "protocol": protocol.name,
        "sync_period": b,
        "num_learners": m,
        "batch_size": streams.widths[0] if len(set(streams.widths)) == 1 else list(streams.widths),
        "weighting": weighting,
        "stream": stream,
        "drift": None if drift is None else dict(drift.settings),
        "initial": digest_of(initial),
    }
    return Algorithm(
        init,
        round_fn,
        message_bytes,
        rates | dict(protocol.hparams),
        settings,
        needs_all_data=True,
        num_learners=m,
        specs=AveragingState(SPREAD, SPREAD, SPREAD, *[EVERYWHERE] * 5),
        reads_own_rows=stream != "shared",
        check=check,
        check_hparams=check_hparams,
        lane_bytes=functools.partial(lane_bytes, task, make_optimizer, streams.slots),
        num_classes=task.num_classes,
        model_of=lambda state, own_k, id: jax.tree.map(lambda w: w[id], state.learners),
        parts=functools.partial(parts, task, {"optimizer": make_optimizer}),
    )
