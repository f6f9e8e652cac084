"""Useful operations, counted by hand from the shapes of the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import fedjax_sim as fs
from fedjax_sim.reporting import training_flops

DIGITS = {"x": np.zeros((5, 28, 28, 1), np.uint8), "y": np.zeros(5, np.int32)}
VECTORS = toys.dataset(4).examples
# Two operations for a product with its sum; forward, and backward by the input and by the kernel.
PER_PRODUCT = 3 * 2


def matmul(params, x):
    return x @ params


@pytest.mark.parametrize(
    ("make", "products"),
    [
        (fs.models.logistic_regression, 784 * 10),
        (fs.models.mnist_2nn, 784 * 200 + 200 * 200 + 200 * 10),
        (
            fs.models.mnist_cnn,
            28 * 28 * 25 * 1 * 32 + 14 * 14 * 25 * 32 * 64 + 7 * 7 * 64 * 512 + 512 * 10,
        ),
    ],
)
def test_the_papers_models(make, products):
    assert training_flops(make(), DIGITS) == PER_PRODUCT * products


def test_the_number_of_examples_does_not_matter():
    few = {name: column[:1] for name, column in DIGITS.items()}
    task = fs.models.mnist_2nn()
    assert training_flops(task, few) == training_flops(task, DIGITS)


def task_of(apply, *shape):
    return fs.models.classifier((lambda key: jnp.zeros(shape), apply), (toys.FEATURES,))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_scan_counts_each_of_its_steps(compiled):
    def apply(params, x):
        return jax.lax.scan(lambda h, _: (h @ params, None), x, length=7)[0]

    task = task_of(jax.jit(apply) if compiled else apply, toys.FEATURES, toys.FEATURES)
    assert training_flops(task, VECTORS) == PER_PRODUCT * 7 * toys.FEATURES**2


def test_a_loop_within_a_loop_counts_the_product_of_both():
    def apply(params, x):
        def inner(_, h):
            return jax.checkpoint(matmul)(params, h)

        def outer(h, _):
            return jax.lax.fori_loop(0, 3, inner, h), None

        return jax.lax.scan(outer, x, length=5)[0]

    task = task_of(apply, toys.FEATURES, toys.FEATURES)
    assert training_flops(task, VECTORS) == PER_PRODUCT * 15 * toys.FEATURES**2


def test_batched_products_count_each_of_the_batch():
    def apply(params, x):
        return jnp.einsum("bf,hfc->bhc", x, params).sum(1) + jax.vmap(matmul, (0, None))(params, x).sum(
            0
        )

    task = task_of(apply, 4, toys.FEATURES, 3)
    assert training_flops(task, VECTORS) == PER_PRODUCT * 2 * 4 * toys.FEATURES * 3
