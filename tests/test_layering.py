"""What must never import what, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

import fedjax_sim

ROOT = pathlib.Path(fedjax_sim.__file__).parent
REPOSITORY = ROOT.parent
# A room may import these rooms or files of ours, beside its own siblings.
ALLOWED = {
    "version": set(),
    "core": set(),
    "runtime": {"core"},
    "participation": {"core"},
    "engine": {"core", "runtime.processes"},
    "data": {"core"},
    "models": {"core"},
    "compression": {"core"},
    "aggregation": {"core", "engine", "compression"},
    "algorithms": {"core", "engine", "compression", "aggregation", "participation"},
    "simulation": {"core", "engine", "participation", "runtime", "version"},
}
# Heavy or particular packages, and the only files that may name them.
CONFINED = {
    "flax": {"models"},
    "tensorflow": {"data.sources.tfds"},
    "tensorflow_datasets": {"data.sources.tfds"},
    "orbax": {"simulation.checkpoint"},
    "matplotlib": {"reporting"},
    "tensorboardX": {"reporting"},
    "wandb": {"reporting.loggers"},
    "pandas": {"simulation.recorded"},
    "absl": set(),
}
# Rooms that another may import inside functions only: data and results draw themselves.
WITHIN_FUNCTIONS = {"data": {"reporting"}, "simulation": {"reporting"}}
WITHOUT_JAX = {
    "core.checks",
    "data.dataset",
    "data.draws",
    "data.niid_bench",
    "data.partition",
    "data.storage",
    *(f"data.sources.{name}" for name in ("cifar", "idx", "leaf", "message_files", "messages")),
    "data.sources.shakespeare",
    "data.sources.__init__",
    "data.sources.synthetic",
    "data.sources.synthetic_logistic",
    "data.sources.tfds",
}

FILES = sorted(ROOT.rglob("*.py"))


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    """(imported module, whether at the top level of the file), in full."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports of ours are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, node in tree.body


def within(name, places):
    return any(name == place or name.startswith(place + ".") for place in places)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_rooms_import_only_what_they_may(path):
    name = module(path)
    room = name.split(".")[0]
    if room in ("__init__", "reporting"):  # they may use everything
        return
    for imported, at_top in imports(path):
        if not imported.startswith("fedjax_sim."):
            continue
        ours = imported.removeprefix("fedjax_sim.")
        sibling = ours.split(".")[0] == room
        if room == "algorithms" and sibling:
            # One algorithm never builds on another; the plumbing is shared.
            assert name.endswith("__init__") or within(
                ours,
                {
                    "algorithms.common",
                    "algorithms.own_models",
                    "algorithms.protocols",
                    "algorithms.topologies",
                },
            ), imported
        elif not sibling and (at_top or not within(ours, WITHIN_FUNCTIONS.get(room, ()))):
            assert within(ours, ALLOWED[room]), f"{name} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_packages_stay_where_they_belong(path):
    name = module(path)
    for imported, at_top in imports(path):
        package = imported.split(".")[0]
        if package in CONFINED:
            assert within(name, CONFINED[package]), f"{name} imports {imported}"
            if package != "flax":
                assert not at_top, f"{name} imports {imported} before it is used"
        if package == "jax":
            assert not within(name, WITHOUT_JAX), f"{name} imports jax"


def test_scripts_and_benchmarks_use_public_names_only():
    public = {"fedjax_sim"}
    for name in fedjax_sim.__all__:
        inner = getattr(getattr(fedjax_sim, name), "__all__", ())
        public |= {f"fedjax_sim.{name}", *(f"fedjax_sim.{name}.{each}" for each in inner)}
    for folder in ("scripts", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for imported, _ in imports(path):
                if imported.split(".")[0] == "fedjax_sim":
                    assert imported in public, path


def test_no_module_keeps_mutable_state():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            value = getattr(node, "value", None)
            named = isinstance(node, ast.Assign | ast.AnnAssign)
            if named and isinstance(value, ast.List | ast.Dict | ast.Set):
                names = [getattr(t, "id", "") for t in getattr(node, "targets", [node])]
                assert names == ["__all__"], f"{path.name}: {names} could be changed"


def test_every_public_name_is_documented():
    for name in fedjax_sim.__all__:
        assert getattr(fedjax_sim, name).__doc__, name


def test_flax_is_imported_with_the_first_model():
    code = """
import sys
import fedjax_sim as fs
assert "flax" not in sys.modules and "models" in dir(fs)
assert fs.models.mnist_2nn().num_classes == 10
assert "flax" in sys.modules and not hasattr(fs, "modells")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
