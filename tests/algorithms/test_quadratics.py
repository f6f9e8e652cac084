"""Algorithms on quadratics: limits that their papers derive, to the last digit that a float holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs


def federation(columns, sizes):
    return fs.data.FederatedData(columns, np.cumsum([0, *sizes]).astype(np.int32))


def ones(column):
    return jnp.ones(column.shape, jnp.float32)


@pytest.fixture
def double_precision():
    """Differences between gradients of 100 and optima at 0 take more than a float32."""
    with jax.enable_x64(), jax.numpy_dtype_promotion("standard"):
        yield


def limit(algorithm, data, num_rounds, lanes=1):
    result = fs.simulate(
        algorithm,
        data,
        key=jax.random.key(0),
        num_rounds=num_rounds,
        eval_every=num_rounds,
        client_fraction=1.0,
        layout=fs.Layout(lanes),
    )
    return float(result.params)


CENTRES, STEPS = np.array([-1.0, 1.0, 5.0]), np.array([1, 5, 30])


def pulled(weights):
    return float((weights * CENTRES).sum() / weights.sum())


@pytest.mark.parametrize(
    ("eta", "published"),
    [
        (0.1, (3.474534, 0.661781)),
        pytest.param(0.01, (4.198146, 1.516409), marks=pytest.mark.slow),
    ],
)
def test_fed_nova_weighs_no_client_by_its_steps(eta, published):
    """Clients descend |x - e_i|^2 / 2 by tau_i steps: lemma 1 and figure 2 of the paper.

    With a_i = 1 - (1 - eta)^tau_i, FedAvg ends at the mean of e_i by a_i, FedNova at that by
    a_i / tau_i.
    """
    task = fs.Task(
        lambda key: jnp.zeros(()),
        lambda x, b, key: ((x - b["e"]) ** 2 / 2, ones(b["e"])),
        lambda x, b: {},
    )
    data = federation({"e": np.repeat(CENTRES, STEPS).astype(np.float32)}, STEPS)
    settings = {"local_epochs": 1, "batch_size": 1, "client_lr": eta, "weighting": "uniform"}
    a = 1 - (1 - eta) ** STEPS
    for make, weights, number in zip((fs.fed_avg, fs.fed_nova), (a, a / STEPS), published, strict=True):
        ends_at = limit(make(task, optax.sgd, **settings), data, round(60 / eta))
        assert ends_at == pytest.approx(pulled(weights), abs=2e-5)
        assert ends_at == pytest.approx(number, abs=2e-5)


@pytest.mark.parametrize("momentum", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_the_optimum_is_fed_nova_s_limit_where_rates_vanish(momentum):
    """With rates near zero nothing is left of the steps' number; momentum has more weight than steps."""
    task = fs.Task(
        lambda key: jnp.zeros(()),
        lambda x, b, key: ((x - b["e"]) ** 2 / 2, ones(b["e"])),
        lambda x, b: {},
    )
    data = federation({"e": np.repeat(CENTRES, STEPS).astype(np.float32)}, STEPS)

    def optimizer(rate):
        return optax.sgd(rate, momentum=momentum)

    algorithm = fs.fed_nova(
        task,
        optimizer,
        local_epochs=1,
        batch_size=1,
        client_lr=1e-4,
        weighting="uniform",
        server_lr=50.0,
    )
    assert limit(algorithm, data, 300) == pytest.approx(CENTRES.mean(), abs=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(0.1)),
        optax.chain(optax.adam(0.1), optax.apply_every(4)),
        optax.chain(
            optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda w: w.ndim > 1, p)),
            optax.sgd(0.1),
        ),
    ],
    ids=["adam", "clipped", "adam-every-4", "decay"],
)
def test_fed_nova_refuses_what_has_no_total_weight(optimizer):
    task = fs.models.logistic_regression()
    with pytest.raises(ValueError, match=r"not linear in its gradients.*wanted SGD"):
        fs.fed_nova(task, optimizer, local_epochs=1, batch_size=1)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"client_optimizer": optax.sgd, "client_lr": 0.1}, marks=pytest.mark.slow),
        pytest.param({"client_optimizer": optax.sgd(0.1)}, marks=pytest.mark.slow),
        {"client_optimizer": optax.sgd(0.1, momentum=0.5, nesterov=True)},
    ],
    ids=["rate", "built", "nesterov"],
)
def test_fed_nova_is_fed_avg_where_clients_take_equally_many_steps(settings):
    task, data = simulated_quadratics(1.0)
    settings = {"local_epochs": 3, "batch_size": float("inf"), "weighting": "uniform"} | settings
    found = limit(fs.fed_nova(task, **settings), data, 2)
    assert found == pytest.approx(limit(fs.fed_avg(task, **settings), data, 2), rel=1e-5)


def simulated_quadratics(gradient):
    """f_1 = x^2 + G x and f_2 = -G x, whose mean x^2 / 2 is 0 at 0; both begin at 1."""
    task = fs.Task(
        lambda key: jnp.ones(()),
        lambda x, b, key: (b["a"] * x * x + b["g"] * x, ones(b["a"])),
        lambda x, b: {},
    )
    return task, federation({"a": np.array([1.0, 0.0]), "g": np.array([gradient, -gradient])}, [1, 1])


@pytest.mark.parametrize(
    ("steps", "gradient", "fed_avg"),
    [
        pytest.param(2, 1, 5.6e-4, marks=pytest.mark.slow),
        pytest.param(2, 10, 2.0e-2, marks=pytest.mark.slow),
        pytest.param(2, 100, 0.24, marks=pytest.mark.slow),
        pytest.param(10, 1, 1.5e-3, marks=pytest.mark.slow),
        pytest.param(10, 10, 4.7e-2, marks=pytest.mark.slow),
        (10, 100, 0.31),
    ],
)
@pytest.mark.usefixtures("double_precision")
def test_scaffold_reaches_the_optimum_whatever_the_clients_differ_by(steps, gradient, fed_avg):
    """Figure 3 of the paper, 50 rounds of K steps: FedAvg's best rate of a grid leaves it far away."""
    task, data = simulated_quadratics(float(gradient))
    settings = {"local_epochs": steps, "batch_size": float("inf"), "weighting": "uniform"}
    grid = 10 ** np.arange(-4, -0.25, 0.25)
    runs = fs.sweep(
        fs.fed_avg(task, client_lr=0.1, **settings),
        data,
        hparams={"client_lr": grid.tolist()},
        seeds=[0],
        num_rounds=50,
        eval_every=50,
        client_fraction=1.0,
        layout=fs.Layout(),
        stacked=True,
    )
    stuck = min(float(run.state.params) ** 2 / 2 for run in runs.runs)
    assert stuck == pytest.approx(fed_avg, rel=0.03)
    rate = 0.3 if steps == 2 else 0.1
    found = limit(fs.scaffold(task, client_lr=rate, **settings), data, 50)
    assert found**2 / 2 < 1e-20


@pytest.mark.usefixtures("double_precision")
def test_lanes_that_pass_from_client_to_client_count_alike_in_x64_mode():
    task, data = simulated_quadratics(10.0)
    settings = {"local_epochs": 2, "batch_size": 1, "shuffle": "never", "client_lr": 0.3}
    assert limit(fs.scaffold(task, **settings), data, 50, lanes=2) ** 2 / 2 < 1e-20
