"""FedBN against flax alone, and against FedAvg on clients whose inputs are scaled differently."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from batch_norm import task, trained_by_hand

import fedjax_sim as fs

TRAINING = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.1}


def run(algorithm, data, evaluate, **settings):
    settings = {"num_rounds": 2, "clients_per_round": 4, "key": jax.random.key(0)} | settings
    return fs.simulate(algorithm, data, evaluate=evaluate, **settings)


def own_models(algorithm, data, **settings):
    models = {}

    @fs.simulation.of_view
    def keep(view):
        models[view.round] = jax.tree.map(np.asarray, view.models(range(view.num_clients)))
        return {}

    run(algorithm, data, keep, **settings)
    return models


@pytest.mark.parametrize("lanes", [1, 4])
def test_two_rounds_equal_flax_alone(lanes):
    data = toys.federation()
    algorithm = fs.fed_bn(task(), shuffle="never", **TRAINING)
    settings = {"clients_per_round": data.num_clients, "layout": fs.Layout(lanes)}
    found = own_models(algorithm, data, **settings)
    models = [jax.tree.map(lambda leaf, k=k: leaf[k], found[0]) for k in range(data.num_clients)]
    weights = np.array(toys.SIZES) / sum(toys.SIZES)
    for r in (1, 2):
        trained = [
            trained_by_hand(w, data[k]["x"], data[k]["y"], epochs=2, batch_size=4, rate=0.1)
            if toys.SIZES[k]
            else w
            for k, w in enumerate(models)
        ]
        for layer in ("Dense_0", "Dense_1"):
            parts = [w.params[layer] for w in trained]
            mean = jax.tree.map(
                lambda *leaves: sum(p * w for p, w in zip(weights, leaves, strict=True)), *parts
            )
            for w in trained:
                w.params[layer] = mean
        models = trained
        wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
        toys.assert_close(found[r], wanted, rtol=2e-4, atol=1e-5)


def test_what_is_shared_and_sent_leaves_the_norms_out():
    for model in ("linen", "nnx"):
        whole = task(model).init(jax.random.key(0))
        algorithm = fs.fed_bn(task(model), **TRAINING)
        state = toys.init(algorithm)
        shared = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        norm = 2 * 8
        assert shared == sum(leaf.size for leaf in jax.tree.leaves(whole.params)) - norm
        assert not any("orm" in path for path in state.params)


def test_an_aggregator_with_memory_takes_the_shared_updates():
    data = toys.federation()
    chain = fs.aggregate(fs.aggregation.error_feedback(fs.compression.top_k(0.5)))
    algorithm = fs.fed_bn(task(), aggregator=chain, **TRAINING)
    result = run(algorithm, data, fs.simulation.own_model_evaluator(task(), data), num_rounds=3)
    assert 0 <= result.rows[-1]["own_accuracy_min"] <= result.rows[-1]["own_accuracy"] <= 1


def test_clients_that_look_different_gain():
    """The paper's claim: where inputs are scaled differently, a client's own statistics fit better."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(toys.CLASSES, toys.FEATURES))
    clients = {}
    for k in range(8):
        y = rng.integers(toys.CLASSES, size=60)
        x = centres[y] + 0.7 * rng.normal(size=(60, toys.FEATURES))
        scale, shift = (0.3, 3.0) if k % 2 else (4.0, -6.0)
        clients[f"client {k}"] = ((scale * x + shift).astype(np.float32), y.astype(np.int32))
    train, test = fs.data.split(fs.data.from_clients(clients), test=0.3, seed=0)

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            return nn.Dense(toys.CLASSES)(x)

    normed = fs.models.classifier(Normed(), (toys.FEATURES,))
    evaluate = fs.simulation.own_model_evaluator(normed, test)
    accuracy = {}
    for make in (fs.fed_avg, fs.fed_bn):
        algorithm = make(normed, local_epochs=1, batch_size=10, client_lr=0.1)
        result = run(algorithm, train, evaluate, num_rounds=15, clients_per_round=8)
        accuracy[make] = result.rows[-1]["own_accuracy"]
    assert accuracy[fs.fed_bn] > accuracy[fs.fed_avg] + 0.05


def test_the_evaluation_counts_each_client_with_its_own_model():
    data = toys.federation()
    algorithm = fs.fed_bn(task(), **TRAINING)
    models = own_models(algorithm, data)
    evaluate = fs.simulation.own_model_evaluator(task(), data, prefix="mine")
    result = run(algorithm, data, evaluate)
    for row in result.rows:
        right, worst = 0, 1.0
        for k in range(data.num_clients):
            if not toys.SIZES[k]:
                continue
            model = jax.tree.map(lambda leaf, k=k: jnp.asarray(leaf[k]), models[row["round"]])
            batch = {name: jnp.asarray(column) for name, column in data[k].items()}
            hits = np.asarray(jnp.argmax(task().predict(model, batch), axis=1) == batch["y"])
            right, worst = right + hits.sum(), min(worst, hits.mean())
        assert row["mine_accuracy"] == pytest.approx(right / sum(toys.SIZES), abs=1e-6)
        assert row["mine_accuracy_min"] == pytest.approx(worst, abs=1e-6)


def test_the_shared_leaves_alone_are_no_model():
    data = toys.federation()
    algorithm = fs.fed_bn(task(), **TRAINING)
    evaluate = fs.evaluator(task(), data, layout=fs.Layout())
    with pytest.raises(ValueError, match="own_model_evaluator each client's own"):
        run(algorithm, data, evaluate, num_rounds=1)


def test_other_clients_cannot_be_tested():
    data = toys.federation()
    evaluate = fs.simulation.own_model_evaluator(task(), toys.federation((3, 4)))
    with pytest.raises(ValueError, match="have 2 clients and the run has 10; wanted the same clients"):
        run(fs.fed_bn(task(), **TRAINING), data, evaluate, num_rounds=1)


class OnlyNorms(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fs.models.MLP((8, toys.CLASSES)), "no layer of the model keeps state.*resnet18"),
        (OnlyNorms(), "all layers of the model keep state"),
    ],
)
def test_models_without_two_parts_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        fs.fed_bn(fs.models.classifier(model, (toys.FEATURES,)), **TRAINING)
