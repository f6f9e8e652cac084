"""Blocks of rounds and races by themselves: what rows add up, when runs diverge, who has won."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.simulation.block import Blocks
from fedjax_sim.simulation.rows import first_bad_round, first_row, next_row
from fedjax_sim.simulation.sweep_runner import RunState, SweepRunner

pytestmark = pytest.mark.usefixtures("quick_compilation")


def toy(round_fn):
    """An algorithm of one number, whose round is `round_fn(key, params) -> (params, loss)`."""

    class State(fs.algorithms.ServerState):
        pass

    def init(key, hparams, num_clients):
        return State(jnp.zeros(()), (), jnp.zeros((), jnp.int32), dict(hparams))

    def one_round(key, state, own, data, cohort):
        params, loss = round_fn(key, state.params)
        info = {"train_loss": loss, "examples": jnp.int32(1), "slots": jnp.int32(1)}
        return state._replace(params=params, round=state.round + 1), own, info

    return fs.Algorithm(init, one_round, lambda state: {}, {"client_lr": 1.0}, {"algorithm": "toy"})


def simulate(algorithm, **settings):
    settings = {"key": jax.random.key(0), "layout": toys.layout(), "num_rounds": 6} | settings
    return fs.simulate(algorithm, toys.federation((2, 3)), **settings)


def blocks(capacity):
    return Blocks(None, None, 1, fs.Layout(), capacity)


def test_each_round_has_a_key_of_its_own():
    def draw(key, params):
        number = jax.random.uniform(key)
        return params + number, number

    rows = simulate(toy(draw), eval_every=1).rows
    assert len({row["train_loss"] for row in rows[1:]}) == 6


def test_a_loss_that_is_no_number_is_found_though_the_model_is_finite():
    def fail(key, params):
        return params + 1, jnp.where(params == 3, jnp.nan, 0.5)

    with pytest.raises(fs.DivergenceError, match="in round 4"):
        simulate(toy(fail), eval_every=6)


def test_the_first_bad_round_is_counted_from_the_start():
    assert first_bad_round(3, {"finite": np.array([True, False, True, False])}) == 5
    assert first_bad_round(3, {"finite": np.array([True, True])}) is None


@pytest.mark.parametrize(
    ("done", "num_rounds", "count"), [(0, 10, 4), (4, 10, 4), (8, 10, 2), (6, 10, 2), (0, 3, 3)]
)
def test_blocks_end_at_evaluations_wherever_they_begin(done, num_rounds, count):
    assert blocks(4).next_count(done, num_rounds) == count


def test_a_row_adds_up_all_rounds_so_far():
    infos = {
        "train_loss": np.array([1.0, 3.0], np.float32),
        "examples": np.array([30, 10], np.int32),
        "slots": np.array([2**31 - 1, 2**31 - 1], np.int32),
        "finite": np.array([True, True]),
    }
    before = first_row({}) | {"round": 4, "examples": 100, "slots": 7}
    row = next_row(before, infos, {})
    assert row["round"] == 6
    assert row["train_loss"] == 1.5  # by examples
    assert row["examples"] == 140
    assert row["slots"] == 2**32 + 5


def test_an_evaluation_weighs_examples_by_their_terms():
    def metrics(params, batch):
        return {"loss": (batch["x"][:, 0], batch["terms"])}

    task = fs.Task(lambda key: jnp.zeros(()), metrics, metrics)
    x, y, terms = np.array([[2.0], [9.0]]), np.zeros(2, np.int32), np.array([1.0, 3.0])
    dataset = fs.data.Dataset({"x": x, "y": y, "terms": terms}, num_classes=2)
    evaluate = fs.evaluator(task, dataset, layout=toys.layout())
    assert evaluate(jnp.zeros(())) == {"test_loss": 11 / 4}


def rows(*accuracies):
    return [{"round": i, "test_accuracy": value} for i, value in enumerate(accuracies)]


class Sizes:
    """Of blocks, what a race asks for when it begins."""

    def message_bytes(self, state):
        return {}


def test_a_race_ends_with_the_first_row_that_reaches_the_target_whoever_comes_later():
    """A run that was one block ahead gives it back: its row, its state, its divergence."""
    states = ("at the end", "a block later")
    slow, fast, broken = (RunState({}, 0, states[1], None, before=states[0]) for _ in range(3))
    slow.rows, fast.rows, broken.rows = rows(0.1), rows(0.1, 0.2), rows(0.1, 0.3)
    race = SweepRunner(Sizes(), (), [slow, fast, broken], 9, 0.5, None, lambda: True)
    race.commit(broken, states[1], None, 2)
    race.commit(slow, states[0], rows(0.1, 0.6)[-1], None)
    race.commit(fast, states[1], rows(0.1, 0.2, 0.9)[-1], None)
    assert not any(map(race.is_open, race.runs))
    for run, last in ((slow, 0.6), (fast, 0.2), (broken, 0.3)):
        finished = race.finished(run)
        assert [row["test_accuracy"] for row in finished.rows] == [0.1, last]
        assert finished.state == states[0]
        assert finished.diverged is None
