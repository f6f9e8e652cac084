"""Runs of learners through the simulation: sweeps, resumption, and everything that is refused."""

import itertools
import json

import averaging_toys as toy
import jax
import pytest
import toys

import fedjax_sim as fs

pytestmark = pytest.mark.usefixtures("quick_compilation")

P = fs.protocols
CLOCK = ("seconds", "round_seconds")


def simulate(algorithm, data=None, num_rounds=6, **settings):
    settings = {"key": jax.random.key(0), "layout": toys.layout()} | settings
    return fs.simulate(algorithm, data or toy.data(), num_rounds=num_rounds, **settings)


def without_clock(rows):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


@pytest.mark.slow
def test_a_sweep_over_delta_compiles_one_program_and_is_made_of_simulate_s_runs():
    algorithm = toy.algorithm(P.dynamic(delta=0.1, period=2))
    settings = {"num_rounds": 6, "eval_every": 3}
    deltas = [0.0, 0.8, float("inf")]
    for stacked in (False, True):
        result = fs.sweep(
            algorithm,
            toy.data(),
            hparams={"delta": deltas},
            layout=toys.layout(1, 1 + stacked),
            stacked=stacked,
            **settings,
        )
        sent = [run.rows[-1]["bytes_up"] for run in result.runs]
        assert sent[0] > sent[1] > sent[2] == 0
        for run, delta in zip(result.runs, deltas, strict=True):
            alone = simulate(algorithm, hparams={"delta": delta}, eval_every=3)
            for ours, theirs in zip(without_clock(run.rows), without_clock(alone.rows), strict=True):
                assert ours.keys() == theirs.keys()
                for name in ours.keys() - {"train_loss"}:
                    assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    with fs.runtime.CompilationCounter() as counter:
        simulate(algorithm, hparams={"delta": 0.3}, eval_every=3, key=jax.random.key(7))
    assert counter.count == 0


def test_an_interrupted_run_ends_to_the_bit_as_one_that_was_not(tmp_path):
    algorithm = toy.algorithm(P.dynamic(delta=0.5, period=2), stream="shared")
    two = toys.layout(1, 2)
    whole = simulate(algorithm, workdir=tmp_path / "whole", checkpoint_seconds=0, layout=two)

    calls = itertools.count(1)

    def die(params):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return {}

    settings = {"workdir": tmp_path / "killed", "checkpoint_seconds": 0, "layout": two}
    with pytest.raises(KeyboardInterrupt):
        simulate(algorithm, evaluate=die, **settings)
    rest = simulate(algorithm, evaluate=lambda params: {}, **settings)
    toys.assert_same(jax.device_get(rest.state.learners), jax.device_get(whole.state.learners))
    assert without_clock(rest.rows) == without_clock(whole.rows)
    loaded = fs.load_run(settings["workdir"])
    assert (loaded.rows, loaded.params) == (rest.rows, None)  # a mean of the learners' models


def test_an_infinite_delta_is_kept_in_the_configuration(tmp_path):
    algorithm = toy.algorithm(P.dynamic(delta=float("inf"), period=2))
    simulate(algorithm, workdir=tmp_path / "w", num_rounds=1)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["delta"] == "inf"


def test_devices_that_cannot_share_learners_evenly_are_not_taken():
    nine = toys.federation((4,) * 9)
    algorithm = toy.algorithm(P.none(), num_learners=9)
    assert simulate(algorithm, nine, layout=None).layout.num_devices == 1
    with pytest.raises(ValueError, match="2 devices cannot share 9 learners evenly"):
        simulate(algorithm, nine, layout=toys.layout(1, 2))
    with pytest.raises(ValueError, match="2 devices cannot share 9 learners evenly"):
        fs.sweep(algorithm, nine, hparams={}, num_rounds=1, layout=toys.layout(1, 2))


def test_divergence_is_found_in_its_round():
    algorithm = toy.algorithm(P.none(period=2), client_lr=1e30)
    with pytest.raises(fs.DivergenceError, match="diverged in round 1"):
        simulate(algorithm)


def test_streams_that_are_too_short_are_refused():
    algorithm = toy.algorithm(P.none(period=2), stream="once")
    message = r"learner 0 has 13 examples and ends after step 6 \(round 3\); the run needs 8 steps of 2"
    with pytest.raises(ValueError, match=message):
        simulate(algorithm, num_rounds=4)
    assert simulate(algorithm, num_rounds=3).rows[-1]["examples"] == 6 * toy.M * toy.B
    uneven = toys.federation((20,) * 9 + (5,))
    with pytest.raises(ValueError, match="learner 9 has 5 examples and ends after step 2"):
        simulate(algorithm, uneven, num_rounds=2)
    with pytest.raises(ValueError, match="learner 3 has no examples"):
        simulate(toy.algorithm(P.none()), toys.federation((5, 5, 5, 0, 5, 5, 5, 5, 5, 5)))


def test_drifts_beyond_the_end_are_refused():
    drift = fs.data.label_drift((5, 12), num_classes=toys.CLASSES)
    algorithm = toy.algorithm(P.none(period=2), drift=drift)
    with pytest.raises(ValueError, match="a drift is due at step 12, but the run ends after step 11"):
        simulate(algorithm, num_rounds=6)
    with pytest.raises(ValueError, match="a drift is due at step 12"):
        fs.simulation.check_sweep(algorithm, toy.data(), hparams={}, num_rounds=6)
    simulate(algorithm, num_rounds=7)
    two = toy.algorithm(P.none(), drift=fs.data.label_drift((1,), num_classes=2))
    with pytest.raises(ValueError, match="the drift permutes 2 classes, but the data has 3"):
        simulate(two)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_learners": 1}, "num_learners is 1; wanted at least 2"),
        ({"num_learners": 0}, "num_learners is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": [2] * 9}, "batch_size has 9 entries for 10 learners"),
        ({"batch_size": "10"}, "batch_size is '10'; wanted a whole number"),
        ({"batch_size": 2**28}, "10 learners x 1 steps x 268435456 examples overflows"),
        ({"weighting": "sizes"}, "weighting is 'sizes'; wanted 'uniform' or 'examples'"),
        ({"stream": "twice"}, "stream is 'twice'; wanted 'once' or 'repeat' or 'shared'"),
        ({"client_lr": -1.0}, "client_lr is -1"),
        ({"initial": []}, "initial has 0 models for 10 learners"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        toy.algorithm(P.none(), **settings)


def test_models_of_other_shapes_and_federations_of_other_sizes_are_refused():
    models = [toys.task().init(jax.random.key(0))] * 9 + [toys.task(hidden=5).init(jax.random.key(0))]
    with pytest.raises(ValueError, match="initial model of learner 9 holds the arrays"):
        toy.algorithm(P.none(), initial=models)
    with pytest.raises(ValueError, match="10 learners, the federation 9 clients"):
        simulate(toy.algorithm(P.none()), toys.federation((4,) * 9))
    with pytest.raises(ValueError, match="delta is -1"):
        simulate(toy.algorithm(P.dynamic(delta=1.0, period=1)), hparams={"delta": -1.0})
    with pytest.raises(ValueError, match=r"fraction is 2.0; wanted a number in \[0, 1\]"):
        simulate(toy.algorithm(P.fed_avg(fraction=1.0, period=1)), hparams={"fraction": 2.0})
