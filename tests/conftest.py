"""Two CPU devices and strict types for all tests, and a small ragged federation."""

import os
import subprocess
import sys

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import toys  # noqa: E402  (after the devices are chosen)

# A worker takes whole files in the order of collection, and one that begins a long file last keeps the
# others waiting. These take the most CPU seconds, some of them by `-m slow`.
LONGEST_FIRST = (
    "test_accelerator.py",
    "test_processes.py",
    "test_notebooks.py",
    "test_scripts.py",
    "test_reproduce_script.py",
    "test_identities.py",
    "test_communication.py",
    "test_sweep_script.py",
    "test_sweep.py",
    "test_simulate.py",
    "test_documents.py",
    "test_client_memory.py",
    "test_fed_prox.py",
    "test_quadratics.py",
)


def pytest_configure(config):
    """Without XLA's fusion emitters, programs compile in half the time.

    Slow tests keep them, and so does `XLA_FLAGS= pytest`.
    """
    quick = "--xla_cpu_use_fusion_emitters=false"
    if "XLA_FLAGS" not in os.environ and config.option.markexpr == "not slow" and _is_known(quick):
        os.environ["XLA_FLAGS"] = quick  # workers and scripts inherit it


def _is_known(flag):
    """Returns whether this version of XLA knows a flag; an unknown flag would end the process."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return not subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": flag}, capture_output=True
    ).returncode


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


# One for all tests, so that they share what is compiled.
@pytest.fixture(scope="session")
def task():
    return toys.task()


@pytest.fixture(scope="session")
def data():
    return toys.federation()


@pytest.fixture(scope="session", autouse=True)
def shared_programs(tmp_path_factory):
    """Tests, their processes and the scripts that they run compile each program once for all of them."""
    directory = str(tmp_path_factory.getbasetemp().parent / "programs")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of processes that tests start, all alike
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module")
def quick_compilation():
    """Most of the time of tests goes into compiling; equalities of runs need no fast programs."""
    before = jax.config.values["jax_disable_most_optimizations"]
    # Programs of either kind round differently, and one must not serve in place of the other.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
