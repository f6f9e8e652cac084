"""What README and CONTRIBUTING show is run as it stands there."""

import pathlib
import re

import jax
import pytest
import toys

import fedjax_sim as fs

ROOT = pathlib.Path(__file__).parent.parent


def python_blocks(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_example_algorithm_is_fed_avg_without_its_pull(task, data):
    (source,) = python_blocks("CONTRIBUTING.md")
    names = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    settings = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.2}
    average, _ = toys.play(fs.fed_avg(task, **settings), data, rounds=2)
    free, info = toys.play(names["fed_prox"](task, mu=0.0, **settings), data, rounds=2)
    toys.assert_close(free.params, average.params, rtol=1e-4)
    assert int(info["examples"]) == 2 * sum(toys.SIZES)

    start = toys.init(fs.fed_avg(task, **settings)).params
    held, _ = toys.play(names["fed_prox"](task, mu=4.0, **settings), data, rounds=2)
    assert toys.largest_difference(held.params, start) < toys.largest_difference(free.params, start)


@pytest.mark.usefixtures("quick_compilation")
def test_the_readmes_example_runs():
    source = "\n".join(python_blocks("README.md"))
    source = source.replace("num_rounds=100", "num_rounds=3").replace("num_rounds=20", "num_rounds=2")
    source = source.replace("eval_every=20", "eval_every=2")
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(source, "README.md", "exec"), names)
    assert names["result"].rows[-1]["round"] == 3
    sent = [run.rows[-1]["bytes_up"] for run in names["thrifty"].runs]
    assert sent[0] > sent[1] >= sent[2] == 0


def test_the_examples_of_tests_are_there():
    rows = re.findall(r"`(test_\w+)` in `(tests/\S+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(rows) == 8
    for name, path in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), (name, path)
