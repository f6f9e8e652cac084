"""Messages counted by hand: their sizes, their totals, and what each algorithm sends."""

import averaging_toys as toy
import jax
import jax.numpy as jnp
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.core.messages import balance, check_counts, check_sizes
from fedjax_sim.simulation.recorded import ledger_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = 4 * (toys.FEATURES * 8 + 8 + 8 * toys.CLASSES + toys.CLASSES)  # float32, 8 hidden units
SETTINGS = {"num_rounds": 3, "eval_every": 2, "client_fraction": 0.4}  # 4 of 10 clients
ALGORITHMS = {
    "fed_avg": lambda task: fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4),
    "fed_sgd": lambda task: fs.fed_sgd(task, client_lr=0.1),
}


def test_sizes_come_in_the_ledgers_order():
    sizes = check_sizes({"down_model": 8, "down_request": 0, "up_violation": 8, "up_model": 4})
    assert list(sizes) == ["up_model", "up_violation", "down_model", "down_request"]
    assert list(sizes.values()) == [4, 8, 8, 0]
    assert check_sizes({}) == {}
    assert list(check_sizes({"down_seed": 1, "up_shares_of_masks": 2})) == [
        "up_shares_of_masks",
        "down_seed",
    ]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"up_model": 4, "up_": 4}, "unknown kind of message 'up_'; wanted up_KIND or down_KIND"),
        ({"model": 4}, "unknown kind of message 'model'; .*lower-case letters and underscores$"),
        ({"sideways_model": 4}, "unknown kind of message 'sideways_model'"),
        ({"up_Model": 4}, "unknown kind of message 'up_Model'"),
        ({"up_model2": 4}, "unknown kind of message 'up_model2'"),
        ({"up_model": -1}, "message_bytes of up_model is -1; wanted at least 0"),
    ],
)
def test_sizes_of_no_message_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(sizes)


def test_rounds_count_the_messages_whose_sizes_are_known_and_no_others():
    counted, sizes = ["train_loss", *fs.messages.exchange(3)], {"down_model": 8, "up_update": 8}
    check_counts(counted, sizes)
    for names, known in (
        (counted, sizes | {"up_model": 8}),
        (counted, {"up_update": 8}),
        (counted[:-1], sizes),
    ):
        with pytest.raises(ValueError, match="wanted the same kinds in both"):
            check_counts(names, known)


def test_totals_follow_from_counts_and_sizes():
    sizes = {"up_model": 100, "up_violation": 110, "down_model": 100, "down_request": 4}
    row = {"messages_up_model": 3, "messages_up_violation": 2, "messages_down_model": 5}
    row |= {"messages_down_request": 3, "trips_up_model": 1, "round": 9}
    assert balance(row, sizes) == {
        "bytes_up": 520,
        "bytes_down": 512,
        "messages_up": 5,
        "messages_down": 8,
        "bytes_up_model": 300,
        "bytes_up_violation": 220,
        "bytes_down_model": 500,
        "bytes_down_request": 12,
    }
    assert balance({}, {}) == dict.fromkeys(
        ("bytes_up", "bytes_down", "messages_up", "messages_down"), 0
    )


def test_an_update_may_come_down():
    found = balance({"messages_down_update": 2}, {"down_update": 10})
    assert (found["bytes_up"], found["bytes_down"], found["messages_down"]) == (0, 20, 2)


def test_bytes_do_not_overflow():
    row = {"messages_up_model": 2**31 - 1}
    assert balance(row, {"up_model": 2**40})["bytes_up"] == (2**31 - 1) * 2**40


def test_an_exchange_is_a_trip_down_and_a_trip_up():
    info = fs.messages.exchange(7)
    assert {name: int(count) for name, count in info.items()} == {
        "messages_down_model": 7,
        "trips_down_model": 1,
        "messages_up_update": 7,
        "trips_up_update": 1,
    }
    assert all(count.dtype == jnp.int32 and count.shape == () for count in info.values())
    assert int(fs.messages.traffic("down_request", 5, trips=3)["trips_down_request"]) == 3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_round_sends_each_client_a_model_and_has_an_update_back(task, data, name):
    result = fs.simulate(ALGORITHMS[name](task), data, key=jax.random.key(0), **SETTINGS)
    assert [row["round"] for row in result.rows] == [0, 2, 3]
    for row in result.rows:
        rounds = row["round"]
        totals = {"messages": 4 * rounds, "bytes": 4 * rounds * MODEL}
        expected = {f"{what}_{to}": n for what, n in totals.items() for to in ("up", "down")}
        for kind in ("up_update", "down_model"):
            expected |= {f"{what}_{kind}": n for what, n in totals.items()}
            expected[f"trips_{kind}"] = rounds
        assert ledger_of(row) == expected
    summary = result.summary()
    assert {name: summary[name] for name in expected} == expected


def test_sequential_sgd_sends_nothing(task, data):
    algorithm = fs.sgd(task, client_lr=0.1, batch_size=4)
    rows = fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=2).rows
    nothing = dict.fromkeys(("bytes_up", "bytes_down", "messages_up", "messages_down"), 0)
    assert [ledger_of(row) for row in rows] == [nothing] * 3
    assert fs.simulation.Link().seconds(rows).tolist() == [0, 0, 0]


def test_a_sweep_counts_what_simulate_counts(task, data):
    algorithm = ALGORITHMS["fed_avg"](task)
    rates = {"client_lr": [0.1, 0.3]}
    swept = fs.sweep(algorithm, data, hparams=rates, seeds=[0], **SETTINGS)
    alone = fs.simulate(algorithm, data, key=jax.random.key(0), **SETTINGS)
    for run in swept.runs:
        assert [ledger_of(row) for row in run.rows] == [ledger_of(row) for row in alone.rows]
        assert run.rows[-1]["bytes_up"] == 3 * 4 * MODEL


@pytest.mark.parametrize("name", ALGORITHMS)
def test_empty_clients_send_and_receive_like_any_other(task, data, name):
    """The ledger's first convention; sizes of data cost nothing, its second."""
    assert 0 in toys.SIZES
    result = fs.simulate(
        ALGORITHMS[name](task), data, key=jax.random.key(0), num_rounds=2, client_fraction=1.0
    )
    everybody = 2 * len(toys.SIZES)
    assert result.rows[-1]["messages_up"] == result.rows[-1]["messages_down"] == everybody
    assert result.rows[-1]["bytes_up"] == result.rows[-1]["bytes_down"] == everybody * MODEL


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_a_count_that_changes_costs_four_bytes_each_time(weighting):
    algorithm = toy.algorithm(fs.protocols.periodic(period=2), weighting=weighting)
    sizes = algorithm.message_bytes(toys.init(algorithm))
    assert sizes["up_model"] == MODEL + {"uniform": 0, "examples": 4}[weighting]
    assert sizes["down_model"] == MODEL
