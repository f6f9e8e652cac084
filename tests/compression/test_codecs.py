"""Codecs by hand: what is kept, what is rounded, and how many bytes it takes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.compression import num_bytes, quantize, top_k

KEY = jax.random.key(0)


def through(codec, x, key=KEY):
    return codec.decode(codec.encode(key, x))


def test_top_k_keeps_the_largest_magnitudes_where_they_were():
    x = {"a": jnp.array([[3.0, -5.0, 1.0], [4.0, -2.0, 0.5]]), "b": jnp.array([-0.1])}
    found = through(top_k(0.5), x)
    np.testing.assert_array_equal(found["a"], [[3, -5, 0], [4, 0, 0]])
    np.testing.assert_array_equal(found["b"], np.float32([-0.1]))  # at least one entry


def test_top_k_sends_exactly_k_also_if_all_are_equal():
    payload = top_k(0.25).encode(KEY, jnp.ones((8,)))
    np.testing.assert_array_equal(payload.parts[0].data, [0, 1])
    assert payload.parts[0].bits == 3


@pytest.mark.parametrize(
    ("fraction", "size", "kept"), [(0.07, 100, 7), (0.071, 100, 8), (1e-9, 5, 1), (1.0, 5, 5)]
)
def test_the_number_of_kept_entries_has_no_rounding_error(fraction, size, kept):
    payload = jax.eval_shape(top_k(fraction).encode, KEY, jax.ShapeDtypeStruct((size,), jnp.float32))
    assert payload.rest.shape == (kept,)


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_an_entry_goes_to_one_of_the_two_nearest_levels(bits):
    x = jax.random.normal(jax.random.key(3), (200,))
    found = np.asarray(through(quantize(bits), x), np.float64)
    step = float(x.max() - x.min()) / (2**bits - 1)
    assert np.abs(found - np.asarray(x)).max() <= step * (1 + 1e-3)
    levels = (found - float(x.min())) / step
    np.testing.assert_allclose(levels, np.round(levels), atol=2**bits * 1e-5)
    assert found[np.argmin(x)] == x.min()
    np.testing.assert_allclose(found[np.argmax(x)], x.max(), rtol=1e-6)


def test_equal_entries_are_sent_exactly():
    np.testing.assert_array_equal(through(quantize(1), jnp.full((5,), 0.3)), np.full(5, 0.3, np.float32))


def test_quantisation_is_unbiased():
    """The mean of n draws is within 5 standard errors; a draw deviates by at most half a step."""
    x, draws = jnp.array([-1.0, -0.9, 0.01, 0.5, 2.0]), 4000
    keys = jax.random.split(jax.random.key(7), draws)
    found = jax.jit(jax.vmap(lambda key: through(quantize(2), x, key)))(keys)
    step = 1.0  # of 2^2 levels between -1 and 2
    bound = 5 * (step / 2) / math.sqrt(draws)
    assert np.abs(np.asarray(found, np.float64).mean(axis=0) - np.asarray(x)).max() < bound
    assert np.asarray(found)[:, 1].std() > 0.2  # it does round at random


def test_two_codecs_quantise_the_values_that_are_kept():
    x = jnp.array([0.0, 8.0, -8.0, 0.1, 5.0, 0.2])
    payload = (top_k(0.5) >> quantize(4)).encode(KEY, x)
    np.testing.assert_array_equal(payload.parts[0].data, [1, 2, 4])
    assert payload.rest is None
    codes = payload.parts[1]["codes"]
    assert (codes.data.shape, codes.bits) == ((3,), 4)
    found = np.asarray(through(top_k(0.5) >> quantize(4), x))
    np.testing.assert_array_equal(found[[0, 3, 5]], 0)
    assert np.abs(found - np.asarray(x))[[1, 2, 4]].max() <= 16 / 15 + 1e-5


def test_arrays_and_steps_draw_apart():
    x = jnp.linspace(0.0, 1.0, 64)
    found = through(quantize(1), {"a": x, "b": x})
    assert (found["a"] != found["b"]).any()


@pytest.mark.parametrize("codec", [top_k(0.5), quantize(8), top_k(0.5) >> quantize(8)])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_stays_visible(codec, bad):
    found = through(codec, jnp.array([1.0, bad, 2.0, 3.0]))
    assert not np.isfinite(found).all()


def test_codecs_refuse_what_they_cannot_encode():
    with pytest.raises(ValueError, match=r"quantize >> top_k: quantize leaves no floats for top_k"):
        quantize(8) >> top_k(0.1)
    with pytest.raises(ValueError, match="top_k >> 8: the second is no codec"):
        top_k(0.1) >> 8
    for x in (jnp.arange(3), jnp.zeros((0,))):
        with pytest.raises(ValueError, match="wanted floats, at least one"):
            top_k(0.1).encode(KEY, x)
    for fraction in (0.0, 1.1, math.nan, "half"):
        with pytest.raises(ValueError, match="fraction is"):
            top_k(fraction)
    for bits in (0, 17, 2.5):
        with pytest.raises(ValueError, match="bits is"):
            quantize(bits)
    assert fs.compression.top_k is top_k


def size_by_hand(shapes, itemsize, fraction, bits):
    """Bytes of a message, from the formulas of the two codecs."""
    total = 0
    for shape in shapes:
        sent = size = math.prod(shape)
        if fraction is not None:
            sent = max(1, math.ceil(round(fraction * size, 6)))
            total += math.ceil(sent * math.ceil(math.log2(size)) / 8)
        total += itemsize * sent if bits is None else math.ceil(sent * bits / 8) + 2 * 4
    return total


def check_packing(shapes, dtype, fraction, bits, seed):
    x = [
        jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), shape, jnp.float32).astype(dtype)
        for i, shape in enumerate(shapes)
    ]
    codec = top_k(fraction) if fraction is not None else quantize(bits)
    if fraction is not None and bits is not None:
        codec = top_k(fraction) >> quantize(bits)
    payload = codec.encode(KEY, x)
    data = codec.pack(payload)
    counted = num_bytes(jax.eval_shape(codec.encode, KEY, x))
    assert len(data) == counted == size_by_hand(shapes, x[0].dtype.itemsize, fraction, bits)
    back = codec.unpack(data, x)
    assert jax.tree.structure(back) == jax.tree.structure(payload)
    for sent, read in zip(jax.tree.leaves(payload), jax.tree.leaves(back), strict=True):
        assert sent.dtype == read.dtype
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(read))
    decoded = codec.decode(back)
    for before, after in zip(x, decoded, strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)


SHAPES = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)
FEW_SHAPES = st.sampled_from([(), (1,), (9,), (3, 5)])  # each shape compiles its own kernels
CASES = {
    "dtype": st.sampled_from([jnp.float32, jnp.bfloat16]),
    "codec": st.one_of(
        st.tuples(st.floats(0.001, 1.0), st.none()),
        st.tuples(st.none(), st.integers(1, 16)),
        st.tuples(st.floats(0.001, 1.0), st.integers(1, 16)),
    ),
    "seed": st.integers(0, 2**31),
}


@given(shapes=st.lists(FEW_SHAPES, min_size=1, max_size=2), **CASES)
@settings(max_examples=10, deadline=None)
def test_a_packed_message_is_as_long_as_the_ledger_says(shapes, dtype, codec, seed):
    check_packing(shapes, dtype, *codec, seed)


@pytest.mark.slow
@given(shapes=st.lists(SHAPES, min_size=1, max_size=3), **CASES)
@settings(max_examples=60, deadline=None)
def test_any_packed_message_is_as_long_as_the_ledger_says(shapes, dtype, codec, seed):
    check_packing(shapes, dtype, *codec, seed)


def test_bytes_of_another_message_are_refused():
    codec, x = top_k(0.5), jnp.arange(8.0)
    data = codec.pack(codec.encode(KEY, x))
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(ValueError, match=rf"got {len(wrong)} bytes; wanted {len(data)}"):
            codec.unpack(wrong, x)
