"""The examples in documents run as they stand, and the links lead somewhere."""

import contextlib
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs

ROOT = pathlib.Path(__file__).parent.parent
ALGORITHM = "docs/how_to/algorithm.md"  # its two examples are no part of a script
PAGES = sorted(
    str(path.relative_to(ROOT))
    for glob in ("*.md", "[a-z]*/*.md", "docs/*/*.md")
    for path in ROOT.glob(glob)
)
SHORT = {"100": 3, "20": 2, "10": 1}  # rounds of an example -> those that a test runs
STARTED = "docs/getting_started.md"  # other pages use its names


def python_blocks(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def example(i):
    names = {}
    exec(compile(python_blocks(ALGORITHM)[i], ALGORITHM, "exec"), names)
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


def run_short(document, names=None):
    """Runs all Python of a document in a few rounds, where some names may be known."""
    source = "\n".join(python_blocks(document))
    source = re.sub(r"num_rounds=(100|20|10)\b", lambda n: f"num_rounds={SHORT[n[1]]}", source)
    source = source.replace("eval_every=20", "eval_every=2")
    names = dict(names or {})
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(source, document, "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, for the files that examples write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def started(quick_compilation, tmp_path_factory):
    """The names of the page with which others begin."""
    with contextlib.chdir(tmp_path_factory.mktemp("started")):
        names = run_short(STARTED)
        assert pathlib.Path("curve.png").stat().st_size > 0
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


def sent_less_with_a_larger_delta(names):
    sent = [run.rows[-1]["bytes_up"] for run in names["thrifty"].runs]
    return sent[0] > sent[1] >= sent[2] == 0


# Each page's examples must run; this must hold afterwards.
OUTCOMES = {
    "docs/how_to/aggregation.md": lambda names: (
        0 < names["compressed"].rows[-1]["bytes_up"] < names["compressed"].rows[-1]["bytes_down"] / 20
    ),
    "docs/how_to/compression.md": lambda names: (
        names["masked"].rows[-1]["bytes_up"] < names["sketched"].rows[-1]["bytes_up"]
        # 5 % of the entries, with their places, are less than a tenth of the model.
        and names["choco"].rows[-1]["bytes_up"] / names["choco"].rows[-1]["messages_up"]
        < names["sketched"].rows[-1]["bytes_down"] / names["sketched"].rows[-1]["messages_down"] / 10
    ),
    "docs/algorithms.md": lambda names: names["scaffold"].settings["algorithm"] == "scaffold",
    "docs/how_to/data.md": lambda names: names["stored"].digest() == names["own"].digest(),
    "docs/how_to/dynamic_averaging.md": sent_less_with_a_larger_delta,
    "docs/how_to/experiments.md": lambda names: (
        names["longer"].rows[-1]["round"] > names["watched"].rows[-1]["round"]
    ),
    "docs/how_to/loss.md": lambda names: np.diff(names["prices"].history()["train_mae"][[0, -1]]) < 0,
    "docs/how_to/metric.md": lambda names: names["measured"].history()["norm"].min() > 0,
    "docs/how_to/model.md": lambda names: (
        names["linear"].rows[-1]["test_loss"] < names["linear"].rows[0]["test_loss"]
    ),
    "docs/how_to/parameters.md": lambda names: (
        toys.largest_difference(names["params"], names["first"].params) == 0
    ),
    "docs/how_to/participation.md": lambda names: names["late"].history()["mean_lag"][-1] > 0,
    "docs/how_to/resume.md": lambda names: [row["round"] for row in names["longer"].rows] == [0, 1, 2],
    "docs/how_to/sweeps.md": lambda names: len(names["sweep"].summary()) == 6,
}


@pytest.mark.parametrize("page", OUTCOMES)
@pytest.mark.slow
def test_the_examples_of_a_page_run(page, started, folder):
    assert OUTCOMES[page](run_short(page, started))


def test_every_page_with_examples_is_run():
    with_examples = {page for page in PAGES if python_blocks(page)}
    assert with_examples == {"README.md", ALGORITHM, STARTED, *OUTCOMES}


@pytest.mark.slow
def test_the_first_page_shows_what_is_printed(started):
    assert str(started["clients"].describe()) in (ROOT / STARTED).read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def anchor(heading):
    """The name under which a page's heading can be linked."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


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


def exists(dotted):
    """Returns whether the package has a name such as `data.load`."""
    found = fs
    for name in dotted.split("."):
        found = getattr(found, name, None)
    return found is not None


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_names_of_the_package_exist(page):
    for name in re.findall(r"\bfs\.(\w+(?:\.\w+)*)", (ROOT / page).read_text()):
        assert exists(name), name


def test_every_namespace_has_a_page_of_reference():
    modules = {
        name: value.__name__
        for name, value in ((name, getattr(fs, name)) for name in fs.__all__)
        if isinstance(value, types.ModuleType)
    }
    pages = {
        path.stem: re.findall(r"automodule:: (\S+)", path.read_text())
        for path in (ROOT / "docs/api").glob("*.md")
    }
    assert pages.pop("index") == ["fedjax_sim"]
    assert pages == {name: [module] for name, module in modules.items()}


def test_the_citation_is_of_this_version():
    versions = re.findall(r"(?m)^version: (\S+)$", (ROOT / "CITATION.cff").read_text())
    assert versions == [fs.__version__]


def test_the_examples_of_tests_are_there():
    rows = re.findall(r"`(test_\w+)` in `(tests/\S+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(rows) == 9
    for name, path in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), (name, path)
