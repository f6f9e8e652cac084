"""Seconds of communication, by hand and by drawing the clients' transfer times."""

import itertools
import math

import numpy as np
import pytest

import fedjax_sim as fs


def history(**kinds):
    """The ledger's columns of kinds of messages: name -> (messages, trips, bytes of a message)."""
    found = {"bytes_up": 0.0, "bytes_down": 0.0}
    for name, (messages, trips, size) in kinds.items():
        messages = np.asarray(messages, np.float64)
        found |= {f"messages_{name}": messages, f"trips_{name}": np.asarray(trips, np.float64)}
        found[f"bytes_{name}"] = size * messages
        found[f"bytes_{name.split('_')[0]}"] += size * messages
    return {name: np.broadcast_to(total, np.shape(messages)) for name, total in found.items()}


# A model of 1 MB, 5 clients a round; rows after 0, 1 and 4 rounds.
ROUNDS = np.array([0, 1, 4])
FED_AVG = history(down_model=(5 * ROUNDS, ROUNDS, 10**6), up_update=(5 * ROUNDS, ROUNDS, 10**6))


def test_a_round_lasts_as_long_as_a_model_down_and_an_update_up():
    link = fs.simulation.Link(up_mbps=4, down_mbps=16, latency_ms=250)
    a_round = (0.25 + 8 / 16) + (0.25 + 8 / 4)
    np.testing.assert_allclose(link.seconds(FED_AVG), a_round * ROUNDS, rtol=1e-12)
    assert link.seconds(FED_AVG).dtype == np.float64


def test_rows_say_what_their_columns_say():
    names = list(FED_AVG)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*FED_AVG.values(), strict=True)]
    link = fs.simulation.Link(spread=0.7)
    np.testing.assert_array_equal(link.seconds(rows), link.seconds(FED_AVG))


def test_before_the_first_row_nothing_was_sent():
    later = {name: column[1:] for name, column in FED_AVG.items()}
    np.testing.assert_array_equal(
        fs.simulation.Link().seconds(later), fs.simulation.Link().seconds(FED_AVG)[1:]
    )


def test_trips_follow_one_another_and_silent_rounds_take_no_time():
    # Rounds of which the second and the last send nothing; the third asks 3 learners in 2 trips.
    link = fs.simulation.Link(up_mbps=8, down_mbps=8, latency_ms=1000)
    found = link.seconds(
        history(
            up_violation=([0, 2, 2, 3, 3], [0, 1, 1, 2, 2], 2 * 10**6),
            down_request=([0, 0, 0, 3, 3], [0, 0, 0, 2, 2], 0),
            up_model=([0, 0, 0, 3, 3], [0, 0, 0, 2, 2], 2 * 10**6),
        )
    )
    third = (1 + 2) + 2 * 1 + 2 * (1 + 2)
    np.testing.assert_allclose(found, [0, 1 + 2, 3, 3 + third, 3 + third], rtol=1e-12)


def test_the_slowest_of_more_clients_is_slower_and_a_spread_slows_them():
    link = fs.simulation.Link(spread=0.5)
    assert link.slowest(1) == pytest.approx(1)
    assert fs.simulation.Link(spread=0).slowest(1000) == 1
    factors = [link.slowest(k) for k in (1, 1.5, 2, 10, 1e3, 1e6, 1e17)]
    assert all(a < b for a, b in itertools.pairwise(factors))
    assert math.isfinite(factors[-1])
    # Phi^-1(2^(-1/2)) = 0.54495
    assert link.slowest(2) == pytest.approx(math.exp(0.5 * 0.544952), rel=1e-5)
    seconds = [fs.simulation.Link(spread=spread).seconds(FED_AVG)[-1] for spread in (0, 0.1, 0.5, 2)]
    assert seconds == sorted(set(seconds))


def test_a_spread_slows_transfers_and_no_latency():
    link = fs.simulation.Link(up_mbps=8, down_mbps=8, latency_ms=100, spread=0.5)
    a_round = 2 * (0.1 + link.slowest(5))
    np.testing.assert_allclose(link.seconds(FED_AVG), a_round * ROUNDS, rtol=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1.0])
@pytest.mark.parametrize("clients", [1, 2, 10, 100])
def test_the_slowest_is_the_median_of_what_is_drawn(clients, spread):
    draws = np.random.default_rng(0).lognormal(0.0, spread, (20_000, clients))
    median = np.median(draws.max(axis=1))
    assert fs.simulation.Link(spread=spread).slowest(clients) == pytest.approx(median, rel=0.03)


@pytest.mark.parametrize("name", ["up_mbps", "down_mbps", "latency_ms", "spread"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_links_without_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; wanted "):
        fs.simulation.Link(**{name: value})


def test_the_edges_of_sense():
    assert fs.simulation.Link(latency_ms=0, spread=0).seconds(FED_AVG)[0] == 0
    for name in ("up_mbps", "down_mbps"):
        with pytest.raises(ValueError, match=f"{name} is 0; wanted megabits per second, above 0"):
            fs.simulation.Link(**{name: 0})
    with pytest.raises(ValueError, match="spread is 11; wanted a number from 0 to 10"):
        fs.simulation.Link(spread=11)


@pytest.mark.parametrize(
    "older",
    [
        {"round": ROUNDS},
        {"round": ROUNDS, "bytes_up": 5e6 * ROUNDS, "bytes_down": 5e6 * ROUNDS},
        FED_AVG | {"bytes_up_update": np.r_[np.nan, 5e6, 2e7]},
    ],
    ids=["no bytes", "no trips", "not in every row"],
)
def test_bytes_without_messages_are_refused(older):
    with pytest.raises(ValueError, match="do not say which messages and trips"):
        fs.simulation.Link().seconds(older)
