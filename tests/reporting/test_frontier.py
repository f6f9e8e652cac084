"""Loss against communication: points, comparisons, tables, pictures."""

import json

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.simulation import SweepRun

PNG = b"\x89PNG"


def run(rate, losses, sent, *, diverged=None, **hparams):
    """A run with these cumulative losses and messages of 1,000,000 bytes after each of its rounds."""
    rows = []
    for r, (loss, messages) in enumerate(zip((None, *losses), (0, *sent), strict=True)):
        row = {"round": r, "examples": 100 * r, "train_loss": 1.0, "test_accuracy": 0.5}
        row |= {"messages_up_model": messages, "trips_up_model": min(r, messages)}
        row |= {"bytes_up_model": messages * 10**6, "bytes_up": messages * 10**6, "bytes_down": 0}
        row |= {"messages_up": messages, "messages_down": 0}
        rows.append(row if loss is None else row | {"cumulative_loss": loss})
    return SweepRun({"client_lr": rate} | hparams, 0, rows, None, diverged)


@pytest.fixture
def points():
    runs = {
        ("periodic", 10): [run(0.1, (100.0, 200.0), (10, 20)), run(0.3, (90.0, 150.0), (10, 20))],
        ("dynamic", 10): [
            run(0.1, (101.0, 203.0), (2, 2), delta=0.5),
            run(0.3, (99.0, 180.0), (0, 0), delta=float("inf")),
            run(0.3, (1.0, 1.0), (0, 0), delta=0.1, diverged=2),
        ],
        ("fed_avg", 50): [run(0.1, (105.0, 210.0), (1, 3), fraction=0.3)],
        ("none", 10): [run(0.1, (110.0, 220.0), (0, 0))],
    }
    return [
        point
        for (name, period), of_protocol in runs.items()
        for point in fs.reporting.frontier_points(of_protocol, protocol=name, period=period)
    ]


def test_a_point_holds_the_totals_of_its_run(points):
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    dynamic = points[2]
    assert (dynamic["protocol"], dynamic["b"], dynamic["delta"], dynamic["rate"]) == (
        "dynamic",
        10,
        0.5,
        0.1,
    )
    assert (dynamic["cumulative_loss"], dynamic["bytes"], dynamic["models_up"]) == (203.0, 2 * 10**6, 2)
    assert dynamic["curve"]["step"] == [0, 10, 20]
    assert dynamic["curve"]["cumulative_loss"] == [0.0, 101.0, 203.0]
    assert dynamic["curve"]["bytes"] == [0, 2 * 10**6, 2 * 10**6]
    # One trip of two models side by side: 50 ms, and 8 Mbit at 8 Mbit/s.
    assert dynamic["seconds"] == pytest.approx(1.05)
    labels = [fs.reporting.point_label(point) for point in points[2:6]]
    assert labels[:2] == ["dynamic, b=10, Δ=0.5", "dynamic, b=10, Δ=inf"]
    assert labels[3] == "fed_avg, b=50, C=0.3"


def test_points_are_compared_at_their_own_rate(points):
    compared = fs.reporting.compare_points(points, period=10)
    ratios = {
        (fs.reporting.point_label(p), p["rate"]): (p["loss_ratio"], p["times_fewer_bytes"])
        for p in compared
    }
    assert ratios["dynamic, b=10, Δ=0.5", 0.1] == (pytest.approx(1.015), 10)
    assert ratios["dynamic, b=10, Δ=inf", 0.3] == (pytest.approx(1.2), None)
    assert ratios["periodic, b=10", 0.3] == (1, 1)
    assert len(compared) == len(points) - 1  # without the one that diverged
    table = fs.reporting.frontier_table(compared)
    assert "| 0.1 | dynamic, b=10, Δ=0.5 | 1.0150 | 1.015 | 2.0 | 10.0 | 1 | 50.00% |" in table
    assert "| nothing sent |" in table
    with pytest.raises(ValueError, match="no run of periodic averaging with b = 7"):
        fs.reporting.compare_points(points, period=7)


def test_pictures_are_written(points, tmp_path):
    panels = {"one": points[:3], "two": points[3:]}
    for axis in ("bytes", "seconds"):
        fs.reporting.plot_frontier(panels, tmp_path / f"{axis}.png", axis=axis)
        assert (tmp_path / f"{axis}.png").read_bytes().startswith(PNG)
    assert (tmp_path / "bytes.png").read_bytes() != (tmp_path / "seconds.png").read_bytes()
    with pytest.raises(ValueError, match="unknown axis 'rounds'"):
        fs.reporting.plot_frontier(panels, tmp_path / "x.png", axis="rounds")
    fs.reporting.plot_over_time(points[:3], tmp_path / "time.png", drifts=(10,), title="drift")
    assert (tmp_path / "time.png").read_bytes().startswith(PNG)
    assert np.all([not path.name.endswith(".partial") for path in tmp_path.iterdir()])
