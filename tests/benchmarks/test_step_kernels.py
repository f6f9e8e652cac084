"""The benchmark that counts kernels, on a small program, in a process of its own for its flags."""

import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
PROGRAM = """
import jax, jax.numpy as jnp
from step_kernels import find_step, kernels, parse, table

def rounds(x):
    x = jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x), x)  # no step: it multiplies nothing
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.cumsum(x @ x, axis=0) / 7, x)

program = parse(jax.jit(rounds).lower(jnp.ones((64, 64))).compile().as_text())
rows = list(kernels(program, find_step(program)))
assert any("dot" in row["kind"] + row["source"] for row in rows), rows
assert any("div" in row["source"] for row in rows), rows
assert not any("sin" in row["source"] for row in rows), rows
assert table(rows).splitlines()[-1] == f"| all | {len(rows)} | 0 | {len(rows)} |"
assert find_step(parse(jax.jit(jnp.sin).lower(1.0).compile().as_text())) is None
"""


@pytest.mark.slow
def test_kernels_of_the_loop_that_multiplies_are_counted():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
