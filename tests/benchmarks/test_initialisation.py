"""The benchmark of initialisations: its networks, and a round of it as a user runs it."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from data_files import data_root, needs
from papers import fedavg

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "initialisation.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("initialisation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = {*flags.FLAGS}
    spec.loader.exec_module(module)
    yield module
    flags.FLAGS.remove_flag_values({*flags.FLAGS} - before)


# A layer of 784 x 200; the deviation of a normal truncated at two of its own is 0.8796 of it.
@pytest.mark.parametrize(
    ("init", "deviation", "most", "bias"),
    [
        ("glorot", (6 / 984 / 3) ** 0.5, (6 / 984) ** 0.5, 0),
        ("tutorial", 0.08796, 0.2, 0.1),
        ("fan_in", 0.8796 / 28, 2 / 28, 0),
        ("unit_scaling", 1 / 28, 3**0.5 / 28, 0),
        ("cifar", 0.03518, 0.08, 0.1),
        ("normal", 1, 10, 0),
    ],
)
@pytest.mark.slow
def test_the_initialisations_are_those_they_are_named_after(benchmark, init, deviation, most, bias):
    module, _ = benchmark.MODELS["2nn"]
    task = benchmark.network(module, benchmark.INITS[init], benchmark.INPUTS["unit"])
    layers = task.init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(layers)) == 199_210
    first = np.asarray(layers["Dense_0"]["kernel"])
    assert first.shape == (784, 200)
    assert first.std() == pytest.approx(deviation, rel=0.02)
    assert abs(first.mean()) < deviation / 50
    assert np.abs(first).max() <= most * 1.0001
    assert all((layer["bias"] == jnp.float32(bias)).all() for layer in layers.values())


def test_a_convolution_counts_its_window(benchmark):
    assert benchmark.fans((5, 5, 32, 64)) == (800, 1600)
    assert benchmark.fans((784, 200)) == (784, 200)


def test_centred_inputs_begin_a_step_lower(benchmark):
    cells = fedavg.published(4, "2nn")
    (cell,) = (c for c in cells if (c.row, c.partition) == ("E=1/B=10", "iid"))
    rates = [benchmark.starting_rates(benchmark.named(f"glorot/{i}"), cell) for i in ("unit", "centred")]
    assert rates == [[0.1, 0.215, 0.464], [0.0464, 0.1, 0.215]]


def test_inputs_are_scaled_as_they_are_named(benchmark):
    black_and_white = jnp.asarray([0, 255], jnp.uint8)
    scaled = {name: np.asarray(f(black_and_white)) for name, f in benchmark.INPUTS.items()}
    np.testing.assert_array_equal(scaled["bytes"], [0, 255])
    np.testing.assert_array_equal(scaled["unit"], [0, 1])
    np.testing.assert_array_equal(scaled["centred"], [-0.5, 0.5])
    np.testing.assert_allclose(scaled["standardised"], [-0.4242, 2.8215], rtol=1e-3)


@pytest.mark.parametrize(
    "text", ["glorot", "glorot/units", "glorrot/unit", "glorot/unit/onc", "a/b/c/d"]
)
def test_what_is_no_variant_is_refused(benchmark, text):
    with pytest.raises(ValueError, match=r"wanted INIT/INPUTS|unknown (init|inputs|shuffle)"):
        benchmark.named(text)


@needs("mnist")
@pytest.mark.slow
def test_a_round_of_the_benchmark_reports_what_it_promises(tmp_path):
    out = tmp_path / "out.json"
    flags = (f"--data_dir={data_root() / 'mnist'}", "--variants=glorot/unit", f"--out={out}")
    flags += ("--rounds_limit=1", "--seeds=3", "--rates=0.1", "--most_rates=1")
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| glorot/unit | - | - | 0.1 (edge of the grid) | - |" in done.stdout
    report = json.loads(out.read_text())
    assert {"command", "date", "machine", "versions", "commit", "method"} <= report.keys()
    assert report["paper"] == [87, 92]
    (row,) = report["rows"]
    assert (row["rounds"], row["rounds_of_seeds"], row["interior"]) == (None, [None], False)
