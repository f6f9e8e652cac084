"""The Hadamard transform, random rotations, and codecs whose error theory knows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.compression import (
    drive,
    eden,
    qsgd,
    quantize,
    random_k,
    rotate,
    subsample,
    tern_grad,
    whole,
)
from fedjax_sim.compression.eden import gaussian_levels
from fedjax_sim.compression.hadamard import hadamard_transform

D = 4096
KEY = jax.random.key(0)


def sylvester(size):
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h


def decoded(codec, x, draws):
    """Returns what the server reads, `[draws, ...]` float64, with a key for each draw."""
    keys = jax.random.split(KEY, draws)
    read = jax.jit(lambda x: jax.lax.map(lambda key: codec.decode(codec.encode(key, x)), keys))
    return np.asarray(read(x), np.float64)


def relative_error(codec, x, draws=60):
    x64 = np.asarray(x, np.float64)
    return np.square(decoded(codec, x, draws) - x64).sum(axis=1).mean() / np.square(x64).sum()


def gaussian(seed=1, size=D):
    return jax.random.normal(jax.random.key(seed), (size,))


def heavy_tailed(size=D):
    """Lognormal with sigma 2 and random signs."""
    signs = jax.random.rademacher(jax.random.key(3), (size,), jnp.float32)
    return signs * jnp.exp(2 * gaussian(2, size))


@pytest.mark.parametrize("size", [1, 2, 8, 128, 256, 512, 2**15])
def test_the_transform_is_sylvesters_matrix_and_its_own_inverse(size):
    x = gaussian(size=size)
    found = hadamard_transform(x)
    if size <= 512:
        wanted = sylvester(size) @ np.asarray(x, np.float64) / math.sqrt(size)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(hadamard_transform(found), x, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found), jnp.linalg.norm(x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (0,)])
def test_the_transform_takes_vectors_of_powers_of_two(shape):
    with pytest.raises(ValueError, match="wanted a vector of 1, 2, 4, 8"):
        hadamard_transform(jnp.ones(shape))


def test_a_rotation_is_undone_keeps_norms_and_differs_between_clients():
    x = {"kernel": gaussian(size=15).reshape(3, 5), "bias": gaussian(size=1)}
    payload = rotate().encode(KEY, x)
    assert payload["kernel"].rest.shape == (16,)
    np.testing.assert_allclose(
        jnp.linalg.norm(payload["kernel"].rest), jnp.linalg.norm(x["kernel"]), rtol=1e-6
    )
    found = rotate().decode(payload)
    for name in x:
        np.testing.assert_allclose(found[name], x[name], atol=1e-6)
    other = rotate().encode(jax.random.key(1), x)
    assert np.abs(other["kernel"].rest - payload["kernel"].rest).max() > 0.1


def test_quantisation_after_a_rotation_meets_its_bound_on_heavy_tails():
    x = heavy_tailed()
    for bits in (1, 2, 4):
        bound = (2 * math.log(D) + 2) / (2**bits - 1) ** 2
        rotated = relative_error(rotate() >> quantize(bits), x)
        assert 0.3 * bound < rotated < bound
        assert relative_error(quantize(bits), x) > 20 * rotated


def test_quantisation_has_the_variance_of_its_levels():
    """An entry at distances a and b from its two nearest levels has the variance a b."""
    x = np.asarray(gaussian(), np.float64)
    for levels in (2, 3, 16):
        step = (x.max() - x.min()) / (levels - 1)
        below = np.mod(x - x.min(), step)
        wanted = (below * (step - below)).sum() / np.square(x).sum()
        assert relative_error(quantize(levels=levels), jnp.float32(x)) == pytest.approx(wanted, rel=0.02)


def test_the_errors_of_drive_and_eden_are_those_of_their_papers():
    """On a lognormal vector of 8192, as in table 1 of the paper on DRIVE."""
    x = jnp.exp(gaussian(size=8192))
    assert relative_error(drive(), x, 400) == pytest.approx(math.pi / 2 - 1, rel=0.02)
    assert relative_error(drive(unbiased=False), x, 400) == pytest.approx(1 - 2 / math.pi, rel=0.02)
    for bits, wanted in ((1, 0.571), (2, 0.133), (3, 0.0358), (4, 0.0096)):
        assert relative_error(eden(bits), x, 200) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    ("bits", "distortion"), [(1, 0.36338), (2, 0.11748), (3, 0.034548), (4, 0.0094973), (8, None)]
)
def test_edens_levels_are_the_best_of_a_gaussian(bits, distortion):
    """Distortions of J. Max, "Quantizing for minimum distortion", 1960, table 1."""
    levels = gaussian_levels(bits)
    if distortion is None:  # Panter and Dite (1951), for many levels
        distortion = math.sqrt(3) * math.pi / 2 / 4**bits * 0.985
    np.testing.assert_allclose(levels, -levels[::-1])
    t = np.linspace(-9, 9, 200_001)
    density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    errors = np.square(t[:, None] - levels).min(axis=1)
    found = (errors * density).sum() * (t[1] - t[0])
    assert found == pytest.approx(distortion, rel=1e-3 if bits < 8 else 1e-2)
    # Each is the mean of what is rounded to it.
    nearest = np.square(t[:, None] - levels).argmin(axis=1)
    means = np.bincount(nearest, t * density) / np.bincount(nearest, density)
    np.testing.assert_allclose(levels, means, atol=1e-3)


@pytest.mark.parametrize(("levels", "bucket"), [(1, None), (4, 512), (256, 512)])
def test_qsgd_keeps_its_bounds(levels, bucket):
    x, n = gaussian(), bucket or D
    bound = min(n / levels**2, math.sqrt(n) / levels)
    assert relative_error(qsgd(levels, bucket), x) <= bound
    if levels == 1:
        assert relative_error(qsgd(levels, bucket), x) > 0.7 * bound
        nonzero = (decoded(qsgd(1), x, 60) != 0).sum(axis=1).mean()
        assert 0.7 * math.sqrt(D) < nonzero <= math.sqrt(D)
    assert relative_error(qsgd(levels, bucket, norm="max"), x) < relative_error(qsgd(levels, bucket), x)


def test_a_subset_has_the_variance_of_its_share():
    x = gaussian()
    assert relative_error(subsample(0.25), x, 200) == pytest.approx(3.0, rel=0.02)
    assert relative_error(random_k(0.25), x, 200) == pytest.approx(0.75, rel=0.02)


UNBIASED = {
    "subsample": subsample(0.25),
    "quantize": quantize(2),
    "three levels": quantize(levels=3),
    "rotate, subsample, quantize": rotate() >> subsample(0.5) >> quantize(2),
    "drive": drive(),
    "eden": eden(2),
    "qsgd": qsgd(2, 16),
    "tern_grad": tern_grad(clip=None),
    "whole": whole(rotate() >> quantize(1)),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_of_many_clients_is_exact(name):
    """The mean of n draws is within 6 standard errors of the entry that varies most."""
    x, draws = gaussian(size=512), 4000
    found = decoded(UNBIASED[name], x, draws)
    spread = found.std(axis=0).max()
    assert spread > 0.1  # it does draw
    assert np.abs(found.mean(axis=0) - np.asarray(x)).max() < 6 * spread / math.sqrt(draws)
    # A wrong scale shows along x, where the errors of all entries average out.
    assert (found.mean(axis=0) @ np.asarray(x)) / np.square(x).sum() == pytest.approx(1, abs=4e-3)
