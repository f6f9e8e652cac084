"""Every codec: sizes, round trips, tampered bytes, and numbers that are not finite."""

import contextlib
import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import compression
from fedjax_sim.compression import (
    bfloat16,
    drive,
    eden,
    error_feedback,
    fp8,
    low_rank,
    num_bytes,
    power_sgd,
    qsgd,
    quantize,
    random_k,
    random_mask,
    rotate,
    sign,
    subsample,
    tern_grad,
    top_k,
    whole,
)

KEY, PATTERN = jax.random.key(0), jax.random.key(1)
FLOATS = 8 * 6 + 5  # of the model below
# Name -> (codec, bytes of the message for a kernel of 8 x 6 and a bias of 5).
CODECS = {
    "bfloat16": (bfloat16(), 2 * FLOATS),
    "drive": (drive(), (4 + 8 + 4) + (4 + 1 + 4)),  # seed, padded signs, scale
    "eden": (eden(3), (4 + 24 + 4) + (4 + 3 + 4)),
    "fp8": (fp8(), FLOATS + 2 * 4),
    "low_rank": (low_rank(2), 4 * (2 * 6 + 5)),
    "low_rank share": (low_rank(0.125), 4 * (1 * 6 + 5)),
    "qsgd": (qsgd(4, 16), (24 + 3 * 4) + (3 + 4)),  # 4 bits of an entry; three buckets and one
    "quantize": (quantize(3), (18 + 8) + (2 + 8)),
    "quantize levels": (quantize(levels=5), (18 + 8) + (2 + 8)),
    "random_k": (random_k(0.25), (4 + 12 * 4) + (4 + 2 * 4)),
    "random_mask": (random_mask(0.25), 4 * (12 + 2)),
    "random_mask, quantize": (random_mask(0.25) >> quantize(2), (3 + 8) + (1 + 8)),
    "rotate": (rotate(), (4 + 64 * 4) + (4 + 8 * 4)),
    "rotate, subsample, quantize": (
        rotate() >> subsample(0.25) >> quantize(2),
        (4 + 4 + 4 + 8) + (4 + 4 + 1 + 8),
    ),
    "sign": (sign(), (6 + 4) + (1 + 4)),
    "sign majority": (sign(majority=True), (6 + 1) + (1 + 1)),
    "subsample": (subsample(0.25), (4 + 12 * 4) + (4 + 2 * 4)),
    "tern_grad": (tern_grad(), (10 + 4) + (1 + 4)),
    "top_k": (top_k(0.25), (12 * 4 + 9) + (2 * 4 + 1)),
    "whole": (whole(rotate() >> quantize(1)), 4 + 8 + 8),
    "whole top_k": (whole(top_k(0.1)), 6 * 4 + 5),
}
STRUCTURED = [name for name, (codec, _) in CODECS.items() if codec.is_structured]
cases = pytest.mark.parametrize("name", CODECS)


def model(dtype=jnp.float32, seed=2):
    drawn = jax.random.normal(jax.random.key(seed), (FLOATS,)).astype(dtype)
    return {"kernel": drawn[:48].reshape(8, 6), "bias": drawn[48:]}


@functools.cache
def encoder(name):
    """Returns the codec's encoding, compiled once for all tests."""
    return jax.jit(CODECS[name][0].encode)


@functools.cache
def decoder(name):
    """Returns its decoding."""
    return jax.jit(CODECS[name][0].decode)


def through(name, x, key=KEY):
    return decoder(name)(encoder(name)(key, x, PATTERN))


def leaves_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(np.asarray(x, np.float64), np.asarray(y, np.float64))


@cases
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_a_message_is_as_long_as_counted_and_comes_back(name, dtype):
    codec, size = CODECS[name]
    x = model(dtype)
    payload = encoder(name)(KEY, x, PATTERN)
    data = codec.pack(payload)
    assert len(data) == num_bytes(payload) == num_bytes(jax.eval_shape(codec.encode, KEY, x))
    if dtype == jnp.float32:
        assert len(data) == size
    back = codec.unpack(data, x, PATTERN if codec.is_structured else None)
    leaves_equal(payload, back)
    decoded = decoder(name)(back)
    assert all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(*map(jax.tree.leaves, (x, decoded)), strict=True)
    )
    leaves_equal(decoded, decoder(name)(payload))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ValueError, match=rf"got {len(wrong)} bytes; wanted {len(data)}"):
            codec.unpack(wrong, x, PATTERN)


@pytest.mark.parametrize("name", STRUCTURED)
def test_a_structured_message_needs_the_key_that_both_sides_know(name):
    codec, _ = CODECS[name]
    data = codec.pack(codec.encode(KEY, model(), PATTERN))
    with pytest.raises(ValueError, match=r"wanted pattern=, the key that encode was given"):
        codec.unpack(data, model())
    other = codec.decode(codec.unpack(data, model(), jax.random.key(9)))
    assert (
        np.abs(other["kernel"] - codec.decode(codec.unpack(data, model(), PATTERN))["kernel"]).max()
        > 0.1
    )


@cases
@pytest.mark.parametrize(
    "bad", [jnp.nan, *(pytest.param(bad, marks=pytest.mark.slow) for bad in (jnp.inf, -jnp.inf))]
)
def test_what_is_not_finite_stays_visible(name, bad):
    x = model() | {"bias": jnp.full((5,), bad)}  # all five, as random subsets leave some of them out
    found = through(name, x)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@cases
def test_zeros_are_decoded_as_zeros(name):
    zeros = jax.tree.map(jnp.zeros_like, model())
    found = through(name, zeros)
    if name != "sign majority":  # where a zero is a vote
        leaves_equal(found, zeros)


@pytest.mark.parametrize("name", [name for name, (codec, _) in CODECS.items() if codec.keeps_norm])
def test_a_codec_that_keeps_norms_does(name):
    for seed in range(20):
        x = model(seed=seed)
        found = through(name, x, jax.random.key(seed))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(x), strict=True):
            assert jnp.linalg.norm(a) <= jnp.linalg.norm(b) * (1 + 1e-6)


@pytest.mark.slow
@given(name=st.sampled_from(sorted(CODECS)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_decoded(name, seed):
    codec, size = CODECS[name]
    data = np.random.default_rng(seed).bytes(size)
    payload = None
    with contextlib.suppress(ValueError):
        payload = codec.unpack(data, model(), PATTERN)
    if payload is None:
        return
    decoded = codec.decode(payload)
    assert [leaf.shape for leaf in jax.tree.leaves(decoded)] == [(5,), (8, 6)]
    assert codec.pack(payload) == data or name in ("bfloat16", "fp8")  # several NaNs


def test_codes_that_nobody_sends_are_refused():
    x = jnp.linspace(-1.0, 1.0, 10)
    for codec, code, wanted in (
        (quantize(levels=5), 7, "code 7; wanted at most 4"),
        (qsgd(4), 15, "code 15; wanted at most 8"),
        (tern_grad(), 255, "code 255; wanted at most 242"),
    ):
        payload = codec.encode(KEY, x)
        part = next(iter(payload.parts[0].values()))
        bad = dataclasses.replace(part, data=jnp.full_like(part.data, code))
        parts = ({**payload.parts[0], next(iter(payload.parts[0])): bad},)
        data = codec.pack(dataclasses.replace(payload, parts=parts))
        with pytest.raises(ValueError, match=wanted):
            codec.unpack(data, x)
    for codec, name in ((drive(), "scale"), (sign(), "scale"), (eden(2), "scale"), (fp8(), "scale")):
        payload = codec.encode(KEY, x)
        negative = payload.parts[-1] | {name: -payload.parts[-1][name]}
        data = codec.pack(dataclasses.replace(payload, parts=(*payload.parts[:-1], negative)))
        with pytest.raises(ValueError, match="got a negative scale"):
            codec.unpack(data, x)
    payload = quantize(2).encode(KEY, x)
    part = payload.parts[0]
    data = quantize(2).pack(
        dataclasses.replace(payload, parts=(part | {"low": part["high"], "high": part["low"]},))
    )
    with pytest.raises(ValueError, match="a least entry above the largest"):
        quantize(2).unpack(data, x)
    data = tern_grad().pack(tern_grad().encode(KEY, x[:6]))  # one digit in the second byte
    with pytest.raises(ValueError, match="code 9; wanted at most 2"):
        tern_grad().unpack(data[:1] + bytes([9]) + data[2:], x[:6])
    payload = top_k(0.5).encode(KEY, x)
    for places in ([1, 1, 2, 3, 4], [0, 1, 2, 3, 15]):
        bad = dataclasses.replace(payload.parts[0], data=jnp.array(places, jnp.uint32))
        data = top_k(0.5).pack(dataclasses.replace(payload, parts=(bad,)))
        with pytest.raises(ValueError, match="wanted different places below 10"):
            top_k(0.5).unpack(data, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantize(0), "bits is 0"),
        (lambda: quantize(33), "bits is 33; wanted a whole number from 1 to 16"),
        (lambda: quantize(), "wanted one of the two"),
        (lambda: quantize(2, levels=4), "wanted one of the two"),
        (lambda: quantize(levels=1), "levels is 1"),
        (lambda: eden(0), "bits is 0"),
        (lambda: eden(33), "bits is 33; wanted a whole number from 1 to 8"),
        (lambda: qsgd(0), "levels is 0"),
        (lambda: qsgd(2**15), "levels is 32768"),
        (lambda: qsgd(1, 0), "bucket is 0"),
        (lambda: qsgd(1, norm="l1"), "norm is 'l1'; wanted 'l2' or 'max'"),
        (lambda: tern_grad(0.0), "clip is 0.0"),
        (lambda: low_rank(0), "rank is 0"),
        (lambda: low_rank(1.5), "rank is 1.5"),
        (lambda: power_sgd(0), "rank is 0"),
        (lambda: random_mask(0.0), "density is 0.0"),
        (lambda: random_mask(1.1), "density is 1.1"),
        (lambda: subsample(0.0), "subsample's fraction is 0.0"),
        (lambda: random_k(2.0), "random_k's fraction is 2.0"),
        (lambda: quantize(2) >> rotate(), "quantize leaves no floats for rotate"),
        (lambda: rotate() >> random_mask(0.5), "before anything is encoded; wanted random_mask first"),
        (lambda: whole(rotate()) >> quantize(1), "wanted whole around the chain"),
        (lambda: rotate() >> whole(quantize(1)), "wanted whole around the chain"),
        (lambda: whole(low_rank(1)), "wanted low_rank without whole"),
        (lambda: whole(8), "whole got 8"),
        (lambda: error_feedback(random_mask(0.5)), "wanted random_mask without error_feedback"),
        (lambda: compression.ef21(power_sgd(1)), "ef21 got power_sgd"),
        (lambda: low_rank(7).encode(KEY, model()), r"a matrix of 8 x 6; wanted a rank of at most 6"),
        (lambda: sign().encode(KEY, jnp.arange(3)), "wanted floats"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rotation_of_the_largest_values_is_warned_of():
    with pytest.warns(UserWarning, match=r"rotate\(\) >> top_k"):
        top_k(0.1) >> rotate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rotate() >> top_k(0.1)


def test_whole_keeps_the_largest_entries_of_the_model():
    x = {"a": jnp.array([1.0, 5.0]), "b": jnp.array([[4.0, 0.5], [3.0, 0.1]], jnp.bfloat16)}
    codec = whole(top_k(0.5))
    found = codec.decode(codec.encode(KEY, x))
    np.testing.assert_array_equal(found["a"], [0, 5])
    np.testing.assert_array_equal(np.asarray(found["b"], np.float32), [[4, 0], [3, 0]])
    assert found["b"].dtype == jnp.bfloat16


def test_a_clipped_ternary_gradient_is_within_its_clip():
    x = jnp.concatenate([jnp.ones(99), jnp.array([100.0])])
    found = np.asarray(tern_grad().decode(tern_grad().encode(KEY, x)))
    most = 2.5 * float(jnp.sqrt(jnp.square(x).mean()))
    assert set(np.round(np.unique(found) / most, 5)) <= {0.0, 1.0, -1.0}
    assert found[-1] == pytest.approx(most)
