"""Codecs with client memory, EF21 and PowerSGD, and the vote of signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.compression import ef21, error_feedback, num_bytes, power_sgd, quantize, sign, top_k

KEY = jax.random.key(0)


def turns(stage, updates):
    """Returns what the server reads in each of one client's turns, and the client's last memory."""
    own, read = stage.memory(updates[0]), []
    for i, update in enumerate(updates):
        sent, own, _ = stage.encode((), {}, own, update, jax.random.fold_in(KEY, i))
        read.append(stage.decode(sent))
    return read, own


def test_ef21_reaches_a_constant_update_and_stays_there():
    update = {"w": jnp.arange(1.0, 11.0)}
    read, estimate = turns(ef21(top_k(0.2)), [update] * 6)
    np.testing.assert_array_equal(read[0]["w"], [0] * 8 + [9, 10])
    np.testing.assert_array_equal(read[1]["w"], [0] * 6 + [7, 8, 9, 10])
    for after in (read[4], read[5], estimate):
        np.testing.assert_array_equal(after["w"], update["w"])


def test_ef21_sends_the_difference_alone():
    update = {"w": jnp.arange(1.0, 11.0)}
    sent, *_ = ef21(top_k(0.2)).encode((), {}, update, update, KEY)
    assert num_bytes(sent) == num_bytes(top_k(0.2).encode(KEY, update)) == 2 * 4 + 1


def low_rank_matrix(rank, seed=0, shape=(30, 20)):
    a, b = (jax.random.normal(jax.random.key(seed + i), (n, rank)) for i, n in enumerate(shape))
    return a @ b.T


def test_power_sgd_recovers_a_matrix_of_its_rank():
    update = {"kernel": low_rank_matrix(3).reshape(5, 6, 20), "bias": jnp.arange(20.0)}
    read, own = turns(power_sgd(3), [update])
    np.testing.assert_allclose(read[0]["kernel"], update["kernel"], atol=1e-4)
    np.testing.assert_array_equal(read[0]["bias"], update["bias"])
    assert jnp.abs(own.residual["kernel"]).max() < 1e-4


def test_power_iteration_approaches_the_best_approximation_from_a_warm_start():
    matrix = low_rank_matrix(20, 3)
    singular = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    best = np.sqrt(np.square(singular[2:]).sum())
    stage, errors = power_sgd(2), []
    own = stage.memory(matrix)
    for _ in range(60):
        # Without the residual, as a new client that knows the basis.
        own = own._replace(residual=jnp.zeros_like(matrix))
        sent, own, _ = stage.encode((), {}, own, matrix, KEY)
        errors.append(float(jnp.linalg.norm(stage.decode(sent) - matrix)))
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-2)


def test_power_sgd_loses_nothing_over_all_rounds():
    updates = [{"kernel": low_rank_matrix(9, seed)} for seed in range(5)]
    read, own = turns(power_sgd(2), updates)
    total = sum(np.asarray(update["kernel"]) for update in updates)
    sent = sum(np.asarray(one["kernel"]) for one in read)
    np.testing.assert_allclose(sent + own.residual["kernel"], total, atol=1e-3)


@pytest.mark.parametrize(("rank", "floats"), [(1, 45_935), (2, 82_260), (4, 154_910)])
def test_power_sgd_of_resnet18_has_the_volume_of_its_paper(rank, floats):
    """Table 3 of Vogels et al. for CIFAR-10: 4.2, 7.5 and 14.2 MiB in the 24 steps of an epoch.

    Its ResNet-18 has batch norm with 11,173,962 parameters, of which vectors are sent whole.
    """
    convolutions = [(3, 3, 3, 64)]
    for width, before in ((64, 64), (128, 64), (256, 128), (512, 256)):
        convolutions += [(3, 3, before, width)] + [(3, 3, width, width)] * 3
        convolutions += [(1, 1, before, width)] if before != width else []
    shapes = [*convolutions, (512, 10), (10,)] + [s[-1:] for s in convolutions for _ in range(2)]
    model = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert sum(leaf.size for leaf in model) == 11_173_962
    stage = power_sgd(rank)
    sent = jax.eval_shape(lambda m: stage.encode((), {}, stage.memory(m), m, KEY)[0], model)
    assert num_bytes(sent) == 4 * floats
    megabytes = {1: 4.2, 2: 7.5, 4: 14.2}[rank]
    assert 24 * num_bytes(sent) / 2**20 == pytest.approx(megabytes, abs=0.06)


def test_the_vote_of_signs_is_the_majority_in_each_entry():
    end, codec = fs.aggregation.majority_vote(), sign(majority=True)
    updates = jnp.array([[1.0, -2, 0.5, -1], [3, -0.1, -4, 1], [0.2, 5, -1, 0]])
    votes = [codec.decode(codec.encode(KEY, update)) for update in updates]
    messages = [end.send(vote, jnp.float32(1))[0] for vote in votes]
    total = jax.tree.map(lambda *parts: sum(parts), *messages)
    update, weight, _ = end.receive(total, ())
    np.testing.assert_array_equal(update, [1, -1, -1, 1])
    assert weight == 3


def test_a_minority_of_adversaries_does_not_turn_a_vote():
    """Four of nine send the opposite signs: the vote is that of the five."""
    end, codec = fs.aggregation.majority_vote(), sign(majority=True)
    update = jax.random.normal(KEY, (50,))
    votes = [codec.decode(codec.encode(KEY, s * update)) for s in [1] * 5 + [-1] * 4]
    total = jax.tree.map(lambda *p: sum(p), *(end.send(v, jnp.float32(1))[0] for v in votes))
    np.testing.assert_array_equal(end.receive(total, ())[0], jnp.sign(update))


def descend(stage, gradient, x, rate, steps):
    """Runs distributed SGD with one worker, whose update is -rate times its gradient."""
    own = stage.memory(x)
    for i in range(steps):
        update = jax.tree.map(lambda g: -rate * g, gradient(x, i))
        sent, own, _ = stage.encode((), {}, own, update, jax.random.fold_in(KEY, i))
        x = jax.tree.map(jnp.add, x, stage.decode(sent))
    return x


def test_error_feedback_repairs_the_counterexample_of_signs():
    """Karimireddy et al. (2019), counterexample 2: f(x) = eps |x_1 + x_2| + |x_1 - x_2|.

    Subgradients are s (1, -1) + eps (1, 1) up to signs, whose sign vector is always (1, -1) or its
    opposite; so scaled signs never change x_1 + x_2, and with error feedback it reaches zero.
    """
    eps, start = 0.5, jnp.array([1.0, 1.0])

    def gradient(x, i):
        return eps * jnp.sign(x[0] + x[1]) * jnp.ones(2) + jnp.where(
            x[0] >= x[1], 1.0, -1.0
        ) * jnp.array([1.0, -1.0])

    plain = fs.aggregate(sign()).stages[0]
    stuck = descend(plain, gradient, start, 0.01, 400)
    assert stuck.sum() == pytest.approx(2.0, abs=1e-4)
    repaired = descend(error_feedback(sign()), gradient, start, 0.01, 400)
    assert jnp.abs(repaired.sum()) < 0.1


def test_ef21_converges_where_error_feedback_stalls():
    """Two clients with other minima, constant steps, top-1: EF21 reaches the optimum of the sum."""
    scales = jnp.array([[1.0, 3.0], [4.0, 0.5]])
    minima = jnp.array([[2.0, -1.0], [-3.0, 1.0]])
    optimum = (scales * minima).sum(0) / scales.sum(0)

    def distance(make):
        stage = make(top_k(0.5))
        x, owns = jnp.zeros(2), [stage.memory(jnp.zeros(2))] * 2
        for i in range(400):
            read = []
            for k in range(2):
                update = -0.1 * scales[k] * (x - minima[k])
                sent, owns[k], _ = stage.encode((), {}, owns[k], update, jax.random.fold_in(KEY, i))
                read.append(stage.decode(sent))
            x = x + (read[0] + read[1]) / 2
        return float(jnp.linalg.norm(x - optimum))

    assert distance(ef21) < 1e-4
    assert distance(error_feedback) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [
        (ef21(top_k(0.3) >> quantize(8)),),
        (power_sgd(2),),
        (fs.aggregation.clip(0.5), error_feedback(sign())),
    ],
)
def test_a_killed_run_resumes_with_the_clients_memory(chain, tmp_path):
    algorithm = fs.fed_avg(
        toys.task(), client_lr=0.1, local_epochs=1, batch_size=4, aggregator=fs.aggregate(*chain)
    )
    settings = {"key": KEY, "client_fraction": 0.5, "eval_every": 1}
    settings |= {"layout": fs.Layout(), "checkpoint_seconds": 0.0}
    whole = fs.simulate(algorithm, toys.federation(), num_rounds=4, **settings)
    fs.simulate(algorithm, toys.federation(), num_rounds=2, workdir=tmp_path, **settings)
    again = fs.simulate(algorithm, toys.federation(), num_rounds=4, workdir=tmp_path, **settings)
    toys.assert_same(again.state.server, whole.state.server)
