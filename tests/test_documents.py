"""The examples in documents run as they stand, and the links lead somewhere."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

ROOT = pathlib.Path(__file__).parent.parent


def python_blocks(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def example(i):
    names = {}
    exec(compile(python_blocks("CONTRIBUTING.md")[i], "CONTRIBUTING.md", "exec"), names)
    return names


def test_the_example_algorithm_is_fed_avg_without_its_pull(task, data):
    names = example(0)
    settings = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.2}
    average, _ = toys.play(fs.fed_avg(task, **settings), data, rounds=2)
    free, info = toys.play(names["fed_prox"](task, mu=0.0, **settings), data, rounds=2)
    toys.assert_close(free.params, average.params, rtol=1e-4)
    assert int(info["examples"]) == 2 * sum(toys.SIZES)

    start = toys.init(fs.fed_avg(task, **settings)).params
    held, _ = toys.play(names["fed_prox"](task, mu=4.0, **settings), data, rounds=2)
    assert toys.largest_difference(held.params, start) < toys.largest_difference(free.params, start)


@pytest.mark.usefixtures("quick_compilation")
def test_the_example_with_memory_reaches_an_optimum_that_fed_avg_misses():
    """Clients minimise a_k (x - b_k)^2 / 2; the empty one has no say."""
    a, b, sizes = np.array([1.0, 2.0, 0.5]), np.array([1.0, -1.0, 4.0]), (4, 0, 4, 4)
    rows = {"a": np.repeat(a, 4).astype(np.float32), "b": np.repeat(b, 4).astype(np.float32)}
    data = fs.data.FederatedData(rows, np.cumsum([0, *sizes]).astype(np.int32))

    def loss(x, batch, key):
        return batch["a"] * (x - batch["b"]) ** 2 / 2, jnp.ones(batch["a"].shape)

    task = fs.Task(lambda key: jnp.zeros(()), loss, lambda x, batch: {})
    settings = {"local_epochs": 10, "batch_size": 2, "client_lr": 0.2}
    optimum = (a * b).sum() / a.sum()

    def end(algorithm):
        state, info = toys.play(algorithm, data, rounds=60)
        assert int(info["examples"]) == 120
        return float(state.params)

    assert abs(end(fs.fed_avg(task, **settings)) - optimum) > 0.1
    fed_dyn = example(1)["fed_dyn"](task, alpha=1.0, **settings)
    assert end(fed_dyn) == pytest.approx(optimum, abs=1e-4)
    assert fed_dyn.message_bytes(toys.init(fed_dyn).server) == {"down_model": 4, "up_update": 4}


def run_short(document):
    """Runs all Python of a document in a few rounds."""
    source = "\n".join(python_blocks(document))
    source = source.replace("num_rounds=100", "num_rounds=3").replace("num_rounds=20", "num_rounds=2")
    source = source.replace("eval_every=20", "eval_every=2")
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(source, document, "exec"), names)
    return names


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.slow
def test_the_readmes_examples_run(task, data):
    names = run_short("README.md")
    assert names["result"].rows[-1]["round"] == 3
    settings = {"local_epochs": 2, "batch_size": 4, "client_lr": 0.2}
    ours, _ = toys.play(fs.fed_avg(task, **settings), data, rounds=2)
    yours, _ = toys.play(names["my_fed_avg"](task, **settings), data, rounds=2)
    toys.assert_same(ours.params, yours.params)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.slow
def test_the_examples_of_the_python_page_run():
    names = run_short("docs/python.md")
    assert names["result"].rows[-1]["round"] == 3
    sent = [run.rows[-1]["bytes_up"] for run in names["thrifty"].runs]
    assert sent[0] > sent[1] >= sent[2] == 0


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def anchor(heading):
    """The name under which a page's heading can be linked."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = sorted(
    str(path.relative_to(ROOT)) for glob in ("*.md", "[a-z]*/*.md") for path in ROOT.glob(glob)
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not link.startswith("http"):
            path, _, name = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            if name:
                headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
                assert name in map(anchor, headings), link


def test_the_examples_of_tests_are_there():
    rows = re.findall(r"`(test_\w+)` in `(tests/\S+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(rows) == 8
    for name, path in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), (name, path)
