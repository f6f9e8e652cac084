"""Two CPU devices and strict types for all tests, and a small ragged federation."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import toys  # noqa: E402  (after the devices are chosen)


# One for all tests, so that they share what is compiled.
@pytest.fixture(scope="session")
def task():
    return toys.task()


@pytest.fixture(scope="session")
def data():
    return toys.federation()


@pytest.fixture(scope="module")
def quick_compilation():
    """Most of the time of tests goes into compiling; equalities of results need no fast programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
