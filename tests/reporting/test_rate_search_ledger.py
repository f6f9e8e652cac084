"""What the record of a run keeps of its messages, and the bytes to the target."""

import json

import numpy as np
from record_samples import one

import fedjax_sim as fs
from fedjax_sim.reporting.rate_search import describe_run, mean_bytes


def run_of(rounds, accuracies, up, down, messages):
    """A run of a sweep whose rows have these cumulative bytes and messages, as many up as down."""
    rows = []
    for row in zip(rounds, accuracies, up, down, messages, strict=True):
        n, accuracy, sent_up, sent_down, count = row
        kinds = {"up_model": sent_up, "down_model": sent_down}
        rows.append({"round": n, "test_accuracy": accuracy, "train_loss": 1.0, "seconds": 0.0})
        rows[-1] |= {"bytes_up": sent_up, "bytes_down": sent_down}
        rows[-1] |= {f"bytes_{kind}": sent for kind, sent in kinds.items()}
        rows[-1] |= {f"{what}_{kind}": count for what in ("messages", "trips") for kind in kinds}
    return fs.simulation.SweepRun({"client_lr": 0.1}, 0, rows, None, None)


STEADY = run_of([0, 4, 6], [0.1, 0.5, 0.9], [0, 80, 120], [0, 40, 60], [0, 8, 12])
FITFUL = run_of([0, 4, 6], [0.1, 0.5, 0.9], [0, 80, 80], [0, 40, 70], [0, 8, 8])


def test_a_described_run_tells_its_bytes_to_the_target():
    steady, fitful = (describe_run(run, 0.7) for run in (STEADY, FITFUL))
    assert [run["rounds_to_target"] for run in (steady, fitful)] == [5, 5]
    assert [run["bytes_to_target"] for run in (steady, fitful)] == [150, 135]
    for target in (0.95, None):
        assert describe_run(STEADY, target)["bytes_to_target"] is None


def test_a_described_run_keeps_its_ledger_in_few_numbers():
    steady, fitful = (describe_run(run, 0.7) for run in (STEADY, FITFUL))
    assert steady["ledger"]["bytes_up"] == 20
    assert fitful["ledger"]["bytes_up"] == [0, 80, 80]
    for run, described in ((STEADY, steady), (FITFUL, fitful)):
        described = json.loads(json.dumps(described))
        kept, whole = fs.reporting.run_history(described), run.history()
        assert kept.keys() == whole.keys() - {"test_accuracy", "train_loss", "seconds"}
        for name, column in kept.items():
            assert column.dtype == np.float64
            np.testing.assert_array_equal(column, whole[name])
        link = fs.simulation.Link(spread=0.5)
        np.testing.assert_array_equal(link.seconds(kept), link.seconds(whole))


def test_runs_without_a_ledger_have_rounds_alone():
    history = fs.reporting.run_history({"rounds": [0, 3], "accuracy": [0.1, 0.2]})
    assert history.keys() == {"round"}
    assert history["round"].tolist() == [0, 3]


def test_a_run_that_diverged_at_once_has_a_ledger_too():
    run = run_of([0], [0.1], [0], [0], [0])
    history = fs.reporting.run_history(describe_run(run, 0.7))
    assert {name: column.tolist() for name, column in history.items()} == {name: [0] for name in history}


def test_bytes_of_several_seeds_are_those_at_their_best_rates():
    runs = [one(0.1, 9), one(0.2, 5), one(0.1, 3, seed=1), one(0.2, 4, seed=1)]
    runs = [run | {"bytes_to_target": 100 * run["rounds_to_target"]} for run in runs]
    best = fs.reporting.best_of_each_seed(runs)
    assert mean_bytes(best, runs) == 400
    del runs[1]["bytes_to_target"]  # as in older records
    assert mean_bytes(best, runs) is None


def test_the_envelope_runs_over_bytes_and_seconds_too():
    runs = [describe_run(run, 0.7) for run in (STEADY, FITFUL)]
    megabytes, best = fs.reporting.envelope(runs, 0, "bytes")
    np.testing.assert_allclose(megabytes, [0, 120e-6, 150e-6, 180e-6])
    np.testing.assert_allclose(best, [0.1, 0.5, 0.9, 0.9])
    link = fs.simulation.Link(latency_ms=1000)
    seconds, _ = fs.reporting.envelope(runs[:1], 0, "seconds", link)
    np.testing.assert_allclose(seconds, [0, 16, 24], rtol=1e-4)  # two trips for each two messages
