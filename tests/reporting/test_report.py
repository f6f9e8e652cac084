"""The files that a run ends with."""

import json

import jax
import pytest
import toys

import fedjax_sim as fs


@pytest.fixture(scope="module")
def result(task, data):
    algorithm = fs.fed_avg(task, client_lr=0.1, local_epochs=1, batch_size=4)
    test = fs.evaluator(task, toys.dataset(31, seed=9), layout=fs.Layout())
    return fs.simulate(algorithm, data, key=jax.random.key(0), num_rounds=2, evaluate=test)


def test_the_summary_tells_the_link_and_its_seconds(tmp_path, result):
    link = fs.simulation.Link(up_mbps=1, latency_ms=20, spread=0.5)
    summary = fs.reporting.write_report(result, tmp_path, link=link)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["link"] == {"up_mbps": 1, "down_mbps": 24, "latency_ms": 20, "spread": 0.5}
    assert summary["link_seconds"] == link.seconds(result.history())[-1] > 4 * 0.02
    assert summary["bytes_up"] == result.rows[-1]["bytes_up"]
    usual = fs.reporting.write_report(result, tmp_path)
    assert (
        usual["link_seconds"] == fs.simulation.Link().seconds(result.rows)[-1] != summary["link_seconds"]
    )


def test_another_axis_draws_another_picture(tmp_path, result):
    drawn = set()
    for axis in fs.reporting.AXES:
        fs.reporting.write_report(result, tmp_path, axis=axis)
        drawn.add((tmp_path / "curve.png").read_bytes())
    assert len(drawn) == 3
