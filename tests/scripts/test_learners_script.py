"""Dynamic averaging by the flags of scripts/train.py."""

import json

import pytest
from script_runs import rows_of, train

LEARNERS = ("--model=logistic", "--num_rounds=4")
AVERAGING = "--algorithm=dynamic_averaging"


@pytest.mark.slow
def test_learners_that_drift_by_flags(tmp_path):
    flags = (
        f"{AVERAGING}:weighting=uniform",
        "--protocol=dynamic:0,3",
        "--drift=labels:6",
        "--workdir=w",
    )
    summary = json.loads(train(*LEARNERS, *flags, cwd=tmp_path).stdout)
    model = 4 * (784 * 10 + 10)
    assert summary["bytes_up"] == summary["bytes_up_violation"] == 4 * 100 * model
    assert summary["bytes_down"] == summary["bytes_down_model"] == 4 * 100 * model
    assert summary["link_seconds"] > 0
    # The test set knows nothing of the drift.
    assert summary["final_accuracy"] is None
    rows = rows_of(tmp_path / "w")
    assert rows[-1]["cumulative_loss"] > rows[-2]["cumulative_loss"] > 0
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert (config["protocol"], config["sync_period"], config["drift"]["at"]) == ("dynamic", 3, [6])


@pytest.mark.slow
def test_learners_on_streams_of_a_graphical_model(tmp_path):
    flags = (AVERAGING, "--dataset=graphical_model", "--num_clients=6", "--drift=redraw:6")
    flags += ("--protocol=dynamic:inf,3",)
    summary = json.loads(train(*LEARNERS, *flags, "--workdir=w", cwd=tmp_path).stdout)
    assert summary["bytes_up"] == summary["bytes_down"] == 0
    assert rows_of(tmp_path / "w")[-1]["examples"] == 4 * 3 * 10 * 6


def test_a_stream_that_is_too_short_is_refused_before_training(tmp_path):
    flags = (f"{AVERAGING}:stream=once", "--protocol=dynamic:1,3")
    refused = train(*LEARNERS, *flags, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "ends after step 4" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()
