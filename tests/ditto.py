"""Ditto, written outside the package: clients train the shared model and then one of their own.

T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: fair and robust federated learning through personalization",
ICML 2021, https://arxiv.org/abs/2012.04221, algorithm 1.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import fedjax_sim as fs


def ditto(task, *, local_epochs, batch_size, client_lr, pull, shuffle="each_epoch"):
    """Client k also minimises h_k(v_k) = F_k(v_k) + pull / 2 ||v_k - w||^2 and remembers v_k."""
    settings = {"local_epochs": local_epochs, "batch_size": batch_size, "shuffle": shuffle}
    local = fs.algorithms.local_sgd(task, client_lr=client_lr, **settings)

    def gradient(v_k, rate, batch, real, key):
        _, pull, w = rate
        g, losses = fs.engine.mean_gradient(task, v_k, batch, real, key)
        return jax.tree.map(lambda g, v, w: g + pull * (v - w), g, v_k, w), losses

    personal = fs.local_training(task, lambda rate: optax.sgd(rate[0]), gradient=gradient, **settings)
    work = fs.engine.sequence(local.work, personal)
    one = fs.fed_avg(task, client_lr=client_lr, **settings)

    def enter(shared, v_k, client, key):
        w, eta, pull = shared
        return (w, v_k), (eta, (eta, pull, w))

    def leave(shared, v_k, client, trained, key):
        (w_k, losses), (v_k, _) = trained
        delta = jax.tree.map(jnp.subtract, w_k, shared[0])
        return fs.ClientOutput(fs.engine.weigh(delta, local.weight_of(client.size)), losses, own=v_k)

    def round_fn(key, state, own, data, cohort):
        shared = (state.params, local.client_rate(state), state.hparams["pull"])
        train = functools.partial(fs.train_clients, key=key, enter=enter, leave=leave, own=own)
        result = train(work, shared, data, cohort)
        update = result.message
        state = local.server_step(state, update.mean(), update.weight)
        return state, result.own, fs.algorithms.round_info(result, cohort)

    return local.algorithm(
        "ditto",
        round_fn,
        hparams={"pull": pull},
        extra=lambda params, num_clients: (),
        memory=lambda key, params: params,
        model_of=lambda state, v_k, id: v_k,
        most_slots=lambda sizes: 2 * one.most_slots(sizes),
        lane_bytes=lambda examples: 2 * one.lane_bytes(examples),
    )
