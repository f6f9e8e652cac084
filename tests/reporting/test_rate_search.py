"""Grids of rates, the best of them, and how a sweep widens its grid until the best lies inside."""

import importlib
import itertools
import json
import math
import types

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.reporting.grids import neighbour, resolution

PROTOCOL = importlib.import_module("fedjax_sim.reporting.rate_search")
BY_3 = [0.01, 0.0215, 0.0464, 0.1, 0.215, 0.464, 1.0]
BY_6 = [0.1, 0.147, 0.215, 0.316, 0.464, 0.681, 1.0, 1.47]


def one(rate, rounds=None, accuracy=0.5, seed=0, diverged=None):
    """What a sweep says of a run, as far as the best is concerned."""
    keys = ("rate", "seed", "rounds_to_target", "best_accuracy", "diverged")
    return dict(zip(keys, (rate, seed, rounds, accuracy, diverged), strict=True))


@pytest.mark.parametrize(("per_decade", "grid"), [(3, BY_3), (6, BY_6)])
def test_grids_and_neighbours_are_the_papers_rates_to_three_digits(per_decade, grid):
    for i, rate in enumerate(grid):
        assert fs.reporting.rate_grid(rate, grid[-1], per_decade) == grid[i:]
        assert fs.reporting.rate_grid(grid[0], rate, per_decade) == grid[: i + 1]
    assert fs.reporting.rate_grid(grid[1] * 0.97, grid[-2] * 1.03, per_decade) == grid[1:-1]
    for below, above in itertools.pairwise(grid):
        for off in (1, (above / below) ** 0.4):  # the next one is at least half a step away
            assert neighbour(below * off, per_decade, 1) == above
            assert neighbour(above / off, per_decade, -1) == below


@pytest.mark.parametrize(
    ("low", "high", "per_decade", "message"),
    [
        (0, 1, 3, "from 0 to 1; wanted 0 < first <= last"),
        (-0.1, 1, 3, "from -0.1"),
        (0.1, math.inf, 3, "to inf"),
        (1, 0.1, 3, "from 1 to 0.1"),
        (0.11, 0.2, 3, "no rate"),
        (0.1, 1, 0, "0 rates per decade; wanted a whole number"),
        (0.1, 1, 2.5, "2.5 rates per decade"),
        (0.1, 1, math.inf, "inf rates per decade; wanted a whole number from 1 to 100"),
        (0.1, 1, math.nan, "nan rates per decade"),
        (1e-300, 1, 100_000, "100000 rates per decade"),
        (1e-300, 1, 100, "from 1e-300 to 1 has 30,001 rates; wanted at most 1,000"),
    ],
)
def test_grids_without_sense_are_refused(low, high, per_decade, message):
    with pytest.raises(ValueError, match=message):
        fs.reporting.rate_grid(low, high, per_decade)


def test_a_grids_resolution_is_the_nearest_of_the_papers():
    assert [resolution(rates) for rates in (BY_3, [0.1], [0.0, 0.1], [0.1, 0.316, 1])] == [3] * 4
    assert [resolution(rates) for rates in (BY_6, BY_6[::-1], [0.1, 0.15, 1])] == [6] * 3


def test_a_grid_shifted_by_half_a_step_stays_shifted():
    grid = [0.147, 0.316, 0.681, 1.47, 3.16, 6.81]
    assert resolution(grid) == 3
    for below, above in itertools.pairwise(grid):
        assert (neighbour(below, 3, 1), neighbour(above, 3, -1)) == (above, below)


@settings(deadline=None)
@given(st.integers(-30, 30), st.sampled_from([(3, 0), (6, 0), (3, 0.5)]))
def test_up_and_down_again_returns_the_same_rate(k, grid):
    per_decade, shift = grid
    rate = float(f"{10 ** ((k + shift) / per_decade):.3g}")
    for direction in (1, -1):
        beside = neighbour(rate, per_decade, direction)
        assert math.log10(beside / rate) * direction == pytest.approx(1 / per_decade, abs=0.005)
        assert neighbour(beside, per_decade, -direction) == rate


@pytest.mark.parametrize(
    ("runs", "rate", "interior"),
    [
        ([one(0.1, 9), one(0.2, 5), one(0.4, 7)], 0.2, True),
        ([one(0.1, 5), one(0.2, 7)], 0.1, False),
        ([one(0.1, 7), one(0.2, 5)], 0.2, False),
        ([one(0.1, 5)], 0.1, False),
        ([one(0.1, 5, 0.7), one(0.2, 5, 0.8), one(0.4, 5, 0.6)], 0.2, True),
        ([one(0.1, None, 0.9), one(0.2, 50, 0.6)], 0.2, False),
        ([one(0.1, 0.0, 0.6), one(0.2, 3, 0.9)], 0.1, False),
        ([one(0.1, None, 0.3), one(0.2, None, 0.4), one(0.4, None, 0.2)], 0.2, True),
        ([one(0.1, None, 0.3), one(0.2, None, 0.9, diverged=7)], 0.1, False),
        ([one(0.1, 8), one(0.2, 5, diverged=6), one(0.4, diverged=1)], 0.2, True),
    ],
)
def test_the_best_run_is_the_first_at_the_target(runs, rate, interior):
    (best,) = fs.reporting.best_of_each_seed(runs)
    (chosen,) = (run for run in runs if run["rate"] == rate)
    assert best == (0, rate, chosen["rounds_to_target"], chosen["best_accuracy"], interior)


def test_each_seed_has_a_best_rate_of_its_own():
    runs = [one(0.1, 9, seed=4), one(0.1, 3, seed=1), one(0.2, 5, seed=4), one(0.2, 4, seed=1)]
    best = fs.reporting.best_of_each_seed([*runs, one(0.4, 7, seed=4), one(0.4, None, seed=1)])
    assert [b[:3] for b in best] == [(4, 0.2, 5), (1, 0.1, 3)]
    assert [b.interior for b in best] == [True, False]
    assert fs.reporting.mean_rounds(best) == 4
    assert fs.reporting.mean_rounds([best[0], best[1]._replace(rounds=None)]) is None


def test_the_envelope_is_the_best_of_all_rates_at_every_round():
    names = ("seed", "rounds", "accuracy")
    curves = [
        (0, [0, 2, 4, 6], [0.1, 0.5, 0.3, 0.4]),
        (0, [0, 3], [0.1, 0.55]),
        (0, [0, 2, 4, 6, 8], [0.1, 0.2, 0.3, 0.4, 0.7]),
        (1, [0, 1], [0.1, 1.0]),
    ]
    runs = [dict(zip(names, curve, strict=True)) for curve in curves]
    rounds, best = fs.reporting.envelope(runs, 0)
    np.testing.assert_array_equal(rounds, [0, 2, 3, 4, 6, 8])
    np.testing.assert_allclose(best, [0.1, 0.5, 0.55, 0.55, 0.55, 0.7])
    np.testing.assert_array_equal(fs.reporting.envelope(runs, 1), [[0, 1], [0.1, 1.0]])


@pytest.fixture
def widened(monkeypatch):
    """Sweeps without training, given the round at which a rate crosses; None where it diverges."""

    def go(crossing, rates, *, seeds=(0,), num_rounds=100, stop_at=0.9, **others):
        sweeps = []  # the rates and rounds of each

        def run(rate, seed, limit):
            reached, curve = crossing(rate, seed), [(0, 0.1)]
            if reached is not None:
                share = min(1, limit / reached)
                curve.append((reached, 0.9) if share == 1 else (limit, 0.1 + 0.8 * share))
                curve += [(math.ceil(reached), 0.9)] if share == 1 else []
            rest = {"train_loss": None, "seconds": 0.0}
            rows = [{"round": n, "test_accuracy": accuracy} | rest for n, accuracy in curve]
            return fs.simulation.SweepRun(
                {"client_lr": rate}, seed, rows, None, 1 if reached is None else None
            )

        def sweep(algorithm, data, *, hparams, seeds, num_rounds, stop_at, eval_every, workdir):
            assert eval_every == 5
            if workdir is not None:
                workdir.mkdir()
            sweeps.append((list(hparams["client_lr"]), num_rounds))
            runs = [run(rate, seed, num_rounds) for rate in hparams["client_lr"] for seed in seeds]
            return types.SimpleNamespace(runs=runs, interrupted=False)

        monkeypatch.setattr(PROTOCOL, "sweep", sweep)
        settings = {"seeds": seeds, "num_rounds": num_rounds, "stop_at": stop_at, "eval_every": 5}
        return fs.reporting.sweep_rates(None, None, rates=rates, **settings, **others), sweeps

    return go


def best_at(*peaks):
    """Crossings that come later with the distance to the best rate of a seed."""
    return lambda rate, seed: 10 + 20 * abs(math.log10(rate / peaks[seed]))


def rates_of(runs):
    return list(dict.fromkeys(run["rate"] for run in runs))


def test_a_grid_with_the_best_inside_is_left_alone(widened):
    runs, sweeps = widened(best_at(0.215), [0.464, 0.1, 0.215])
    assert sweeps == [([0.1, 0.215, 0.464], 100)]
    assert [run["rate"] for run in runs] == [0.1, 0.215, 0.464]


@pytest.mark.parametrize(
    ("peak", "rates", "further"),
    [
        (1.0, [0.1, 0.215], [0.464, 1.0, 2.15]),
        (0.01, [0.0464, 0.1], [0.0215, 0.01, 0.00464]),
        (0.1, [0.1], [0.0464, 0.215]),
        (0.3, [0.1, 0.147, 0.215], [0.316, 0.464]),
        (6.81, [0.681, 1.47, 3.16], [6.81, 14.7]),
    ],
    ids=["up", "down", "both", "finer", "shifted"],
)
def test_the_grid_widens_until_the_best_lies_inside(widened, peak, rates, further):
    said = []
    runs, sweeps = widened(best_at(peak), rates, report=said.append)
    assert [chosen for chosen, _ in sweeps] == [rates, *([rate] for rate in further)]
    assert rates_of(runs) == sorted(rates + further)
    assert fs.reporting.best_of_each_seed(runs)[0].interior
    assert all(f"trying {rate:g} " in text for rate, text in zip(further, said, strict=True))


def test_seeds_at_different_edges_widen_the_grid_on_both_sides(widened):
    runs, _ = widened(best_at(0.0464, 0.464), [0.0464, 0.1, 0.464], seeds=(0, 1))
    assert rates_of(runs) == [0.0215, 0.0464, 0.1, 0.464, 1.0]
    assert [run["seed"] for run in runs] == [0, 1] * 5
    assert all(best.interior for best in fs.reporting.best_of_each_seed(runs))


def test_each_sweep_of_a_grid_that_widens_has_a_folder_of_its_own(widened, tmp_path):
    widened(best_at(1.0), [0.1, 0.215], workdir=tmp_path)
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {"first", "rate0.464", "rate1", "rate2.15"}


@pytest.mark.parametrize("most", [2, 4, 13])
def test_the_grid_has_no_more_rates_than_allowed(widened, most):
    runs, _ = widened(best_at(1e9), [0.1, 0.215], most_rates=most)
    assert len(rates_of(runs)) == most


def test_a_neighbour_that_diverges_ends_the_widening(widened):
    def crossing(rate, seed):
        return None if rate > 0.5 else best_at(1e9)(rate, seed)

    runs, _ = widened(crossing, [0.1, 0.215], num_rounds=1000)
    assert [(run["rate"], run["diverged"]) for run in runs][-2:] == [(0.464, None), (1.0, 1)]
    assert fs.reporting.best_of_each_seed(runs)[0].rate == 0.464


def test_further_rates_run_no_longer_than_the_best_so_far(widened):
    def crossing(rate, seed):
        return {0.1: 40.2, 0.215: 20.3, 0.464: 12.4, 1.0: 30}[rate] + seed

    runs, sweeps = widened(crossing, [0.1, 0.215], seeds=(0, 1))
    # To the last evaluation of the best, so that curves are read between the same rounds.
    assert sweeps == [([0.1, 0.215], 100), ([0.464], 22), ([1.0], 14)]
    assert [run["rounds_to_target"] for run in runs] == [40.2, 41.2, 20.3, 21.3, 12.4, 13.4, None, None]


def test_all_rounds_are_run_while_a_seed_has_not_reached_the_target(widened):
    _, sweeps = widened(best_at(0.215, 1e9), [0.1, 0.215, 0.464], seeds=(0, 1))
    assert sweeps[1] == ([1.0], 100)


def test_without_a_target_the_most_accurate_rate_is_the_best(widened):
    runs, sweeps = widened(best_at(0.464), [0.1, 0.215], num_rounds=9, stop_at=None)
    assert rates_of(runs) == [0.1, 0.215, 0.464, 1.0]
    assert [limit for _, limit in sweeps] == [9, 9, 9]
    assert fs.reporting.best_of_each_seed(runs)[0].rate == 0.464


def test_where_every_rate_diverges_lower_ones_are_tried(widened):
    def crossing(rate, seed):
        return None if rate > 0.5 else best_at(0.215)(rate, seed)

    runs, sweeps = widened(crossing, [10.0, 21.5])
    assert [rate for chosen, _ in sweeps[1:] for rate in chosen] == [4.64, 2.15, 1.0, 0.464, 0.215, 0.1]
    assert fs.reporting.best_of_each_seed(runs)[0].rate == 0.215


def test_a_rate_that_diverges_does_not_end_a_sweep(task, data):
    runs = fs.reporting.sweep_rates(
        fs.fed_avg(task, client_lr=1.0, local_epochs=1, batch_size=4),
        data,
        rates=[0.1, 0.5, 1e30],
        seeds=[0, 1],
        num_rounds=3,
        stop_at=None,
        most_rates=3,
        client_fraction=0.4,
        evaluate=fs.evaluator(task, toys.dataset(31, seed=9), layout=fs.Layout()),
    )
    assert [run["rate"] for run in runs] == [0.1, 0.1, 0.5, 0.5, 1e30, 1e30]
    assert [run["diverged"] for run in runs] == [None] * 4 + [1] * 2
    assert [run["rounds"] for run in runs] == [[0, 1, 2, 3]] * 4 + [[0]] * 2
    assert runs == json.loads(json.dumps(runs, allow_nan=False))
