"""One table over all algorithms: what each must give, whatever it computes."""

import json
import pathlib

import batch_norm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from contract_cases import ALGORITHMS

import fedjax_sim as fs
from fedjax_sim.algorithms.common import server_step, start_server
from fedjax_sim.core.messages import check_sizes


def test_the_table_is_complete():
    from fedjax_sim import algorithms

    files = pathlib.Path(algorithms.__file__).parent.glob("*.py")
    factories = sorted(
        {path.stem for path in files} - {"__init__", "common", "own_models", "topologies"}
    )
    helpers = {"local_sgd", "round_info"}
    assert factories == [name for name in algorithms.__all__ if name.islower() and name not in helpers]
    assert sorted(factories) == sorted(ALGORITHMS)
    assert all(getattr(fs, name) is getattr(algorithms, name) for name in factories)


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, task):
    return ALGORITHMS[request.param](task)


def test_state_and_info_have_what_the_simulation_reads(algorithm, task, data):
    start = toys.init(algorithm)
    state, info = toys.play(algorithm, data)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(task.init, jax.random.key(0)))
    if clusters := algorithm.settings.get("num_clusters"):  # that many models, side by side
        expected = {name: {k: (clusters, *s) for k, s in d.items()} for name, d in expected.items()}
    own_state = state.server if algorithm.memory else state
    if algorithm.settings["algorithm"] == "fed_bn":  # the leaves that are no client's own
        layers = ("Dense_0", "Dense_1")
        whole = jax.eval_shape(batch_norm.task().init, jax.random.key(0)).params
        expected = {f"{d}/{name}": leaf.shape for d in layers for name, leaf in whole[d].items()}
    assert jax.tree.map(jnp.shape, own_state.params) == expected
    assert set(own_state.hparams) == set(algorithm.hparams)
    assert info["train_loss"].dtype == jnp.float32
    assert np.isfinite(info["train_loss"])
    assert info["examples"].dtype == info["slots"].dtype == jnp.int32
    assert 0 < info["examples"] <= info["slots"]
    sizes = algorithm.message_bytes(own_state)
    assert check_sizes(sizes) == sizes
    counted = {name.removeprefix("messages_") for name in info if name.startswith("messages_")}
    assert counted == set(sizes)
    assert all(info[f"trips_{name}"].dtype == jnp.int32 for name in sizes)
    assert json.loads(json.dumps(algorithm.settings)) == algorithm.settings
    assert algorithm.settings["algorithm"] in ALGORITHMS


def test_rounds_learn(algorithm, data):
    _, first = toys.play(algorithm, data)
    _, later = toys.play(algorithm, data, rounds=20)
    assert later["train_loss"] < first["train_loss"]


def test_another_rate_another_key_another_cohort_compile_nothing(algorithm, data):
    round_fn = toys.round_of(algorithm)
    data = jax.tree.map(jnp.asarray, data)

    def play(seed, state, ids):
        round_fn(jax.random.key(seed), state, data, toys.cohort(algorithm, ids))

    other = toys.init(algorithm, 1, client_lr=0.7, lr_decay=0.9)
    play(0, toys.init(algorithm), [0, 1, 2])
    with fs.runtime.CompilationCounter() as counter:
        play(1, other, [9, 4, 3])
    assert counter.count == 0


def test_a_round_without_data_changes_nothing_but_the_count_of_rounds():
    """Not even where the server's optimizer would move on by itself."""
    optimizer = optax.sgd(0.5, momentum=0.9)
    state = start_server({"w": jnp.ones(2)}, optimizer, {})
    state = server_step(state, optimizer, {"w": jnp.full(2, 3.0)}, jnp.float32(7))
    toys.assert_same(state.params, {"w": np.full(2, -0.5, np.float32)})
    after = server_step(state, optimizer, {"w": jnp.zeros(2)}, jnp.float32(0))
    toys.assert_same(after, state._replace(round=jnp.int32(2)))


@pytest.mark.parametrize("name", ["client_lr", "lr_decay"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("factory", ["dynamic_averaging", "fed_avg", "fed_sgd", "sgd"])
def test_bad_rates_are_refused(task, factory, name, value):
    settings = {
        "dynamic_averaging": {
            "protocol": fs.protocols.none(),
            "num_learners": 2,
            "batch_size": 4,
        },
        "fed_avg": {"local_epochs": 1, "batch_size": 4},
        "fed_sgd": {},
        "sgd": {"batch_size": 4},
    }[factory]
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        getattr(fs, factory)(task, **({"client_lr": 0.1} | settings | {name: value}))


def test_rates_are_numbers_of_any_kind(task):
    for rate in (1, np.float32(0.5), jnp.float32(0.5)):
        fs.fed_sgd(task, client_lr=rate)
    for rate in ("0.5", True):
        with pytest.raises(ValueError, match=f"client_lr is {rate!r}; wanted a finite number"):
            fs.fed_sgd(task, client_lr=rate)


def test_bad_static_settings_are_refused(task):
    with pytest.raises(ValueError, match="weighting is 'sizes'"):
        fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4, weighting="sizes")
    with pytest.raises(ValueError, match="batch_size is inf; wanted a whole number"):
        fs.sgd(task, batch_size=float("inf"))
    with pytest.raises(ValueError, match="steps_per_round is 0"):
        fs.sgd(task, batch_size=4, steps_per_round=0)
