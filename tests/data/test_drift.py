"""Concept drift of any data: when it happens, what labels become, how images turn."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

LABELS = np.arange(6, dtype=np.int32)


def labels_at(drift, step, y=LABELS):
    return np.asarray(jax.jit(drift.apply)({"y": jnp.asarray(y)}, jnp.int32(step))["y"])


def turned(x, degrees, step=1):
    drift = fs.data.rotation_drift(degrees)
    return np.asarray(jax.jit(drift.apply)({"x": jnp.asarray(x)}, jnp.int32(step))["x"])


def pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def test_steps_are_drawn_independently_with_their_probability():
    assert fs.data.drift_steps(0, 1_000) == ()
    assert fs.data.drift_steps(1, 5) == (1, 2, 3, 4)
    assert fs.data.drift_steps(1, 1) == ()
    steps = fs.data.drift_steps(0.1, 20_001)
    assert len(steps) == pytest.approx(2_000, rel=0.1)
    assert steps[0] >= 1
    assert steps[-1] <= 20_000
    gaps = np.diff(steps)
    assert gaps.min() == 1
    assert (gaps > 10).mean() == pytest.approx(0.9**10, rel=0.1)


def test_the_seed_decides_the_steps_and_a_longer_stream_begins_alike():
    steps = fs.data.drift_steps(0.05, 1_000, seed=3)
    assert steps == fs.data.drift_steps(0.05, 1_000, seed=3)
    assert steps != fs.data.drift_steps(0.05, 1_000, seed=4)
    longer = fs.data.drift_steps(0.05, 5_000, seed=3)
    assert longer[: len(steps)] == steps
    assert longer[len(steps)] >= 1_000
    assert all(type(step) is int for step in steps)


def test_labels_are_permuted_from_each_drift_on():
    drift = fs.data.label_drift((3, 4, 10), num_classes=6)
    assert drift.at == (3, 4, 10)
    concepts = [labels_at(drift, step) for step in (0, 3, 4, 10)]
    np.testing.assert_array_equal(concepts[0], LABELS)
    for before, after in itertools.pairwise(concepts):
        assert (before != after).any()
    for concept in concepts:
        np.testing.assert_array_equal(np.sort(concept), LABELS)
    for step, concept in {2: 0, 5: 2, 9: 2, 11: 3, 10**9: 3}.items():
        np.testing.assert_array_equal(labels_at(drift, step), concepts[concept])


def test_two_classes_swap_at_every_drift():
    drift = fs.data.label_drift(range(1, 20), num_classes=2)
    for step in range(20):
        assert labels_at(drift, step, LABELS[:2]).tolist() == [step % 2, 1 - step % 2]


def test_the_seed_decides_the_permutations():
    one, again, other = (
        labels_at(fs.data.label_drift((1, 2, 3), num_classes=6, seed=seed), 3) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_without_a_drift_labels_stay():
    drift = fs.data.label_drift((), num_classes=6)
    assert drift.at == ()
    np.testing.assert_array_equal(labels_at(drift, 1_000), LABELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_keep_their_dtype_and_other_columns_are_left_alone(dtype):
    drift = fs.data.label_drift((1,), num_classes=200)
    batch = {"x": pixels(3, 4), "y": np.array([0, 150, 199], dtype)}
    after = drift.apply(jax.tree.map(jnp.asarray, batch), jnp.int32(1))
    assert after["y"].dtype == dtype
    assert len(set(after["y"].tolist())) == 3
    np.testing.assert_array_equal(after["x"], batch["x"])


def test_learners_side_by_side_share_the_concept():
    batches = {"x": pixels(4, 5, 6, 6, 1), "y": np.tile(LABELS[:5], (4, 1))}
    for drift in (fs.data.label_drift((2,), num_classes=6), fs.data.rotation_drift(7.0)):
        together = jax.jit(jax.vmap(drift.apply, in_axes=(0, None)))(batches, jnp.int32(3))
        for i in range(4):
            alone = drift.apply({k: jnp.asarray(v[i]) for k, v in batches.items()}, jnp.int32(3))
            for name in batches:
                assert together[name].dtype == batches[name].dtype
                np.testing.assert_array_equal(together[name][i], alone[name])


@pytest.mark.parametrize(
    "x", [pixels(2, 7, 7), pixels(2, 5, 9), pixels(2, 8, 8, 3), pixels(2, 49, dtype=np.float32)]
)
def test_images_are_as_stored_at_step_0(x):
    after = turned(x, 33.0, step=0)
    assert after.dtype == x.dtype
    np.testing.assert_array_equal(after, x)


@pytest.mark.parametrize("shape", [(3, 7, 7), (3, 8, 8), (3, 28, 28, 1), (3, 8, 8, 2), (3, 49), (3, 64)])
def test_quarters_of_a_turn_go_counter_clockwise_as_rot90(shape):
    x = pixels(*shape)
    side = math.isqrt(shape[1]) if len(shape) == 2 else shape[1]
    quarter = jax.jit(fs.data.rotation_drift(90.0).apply)
    for step in (1, 2, 3, 4, 4_001):
        expected = np.rot90(x.reshape(3, side, side, -1), k=step, axes=(1, 2)).reshape(shape)
        after = quarter({"x": jnp.asarray(x)}, jnp.int32(step))["x"]
        np.testing.assert_array_equal(after, expected)


def test_negative_angles_turn_clockwise():
    x = pixels(2, 7, 7)
    np.testing.assert_array_equal(turned(x, -90.0), np.rot90(x, k=-1, axes=(1, 2)))


def test_images_need_not_be_square():
    x = pixels(2, 5, 8, 3)
    np.testing.assert_array_equal(turned(x, 45.0, step=4), x[:, ::-1, ::-1])


@pytest.mark.parametrize("degrees", [10.0, -75.0, 200.0])
def test_between_pixels_images_are_interpolated(degrees):
    # Of a plane, bilinear interpolation makes no error.
    down, right = np.mgrid[-4:5, -4:5].astype(np.float32)
    a = math.radians(degrees)
    expected = 3 * (math.cos(a) * down + math.sin(a) * right) - 2 * (
        math.cos(a) * right - math.sin(a) * down
    )
    inside = np.hypot(down, right) <= 4
    after = turned((3 * down - 2 * right)[None], degrees / 5, step=5)[0]
    np.testing.assert_allclose(after[inside], expected[inside], atol=1e-4)


def test_what_comes_from_outside_is_zero():
    after = turned(np.full((1, 21, 21), 255, np.uint8), 45.0)[0]
    assert after[0, 0] == after[0, -1] == after[-1, 0] == after[-1, -1] == 0
    assert (after[7:14, 7:14] == 255).all()


def test_integers_are_rounded_and_dtypes_kept():
    x = pixels(2, 9, 9)
    exact = turned(x.astype(np.float32), 20.0)
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(turned(x, 20.0), np.round(exact).astype(np.uint8))
    half = turned(x.astype(np.float16), 20.0)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, exact, rtol=1e-3)


def test_settings_tell_drifts_apart_and_survive_json():
    drifts = [
        fs.data.label_drift((1, 2), num_classes=6),
        fs.data.label_drift(np.array([1, 3]), num_classes=np.int64(6)),
        fs.data.label_drift((1, 2), num_classes=7),
        fs.data.label_drift((1, 2), num_classes=6, seed=np.int64(1)),
        fs.data.rotation_drift(1),
        fs.data.rotation_drift(np.float32(2)),
    ]
    for drift in drifts:
        assert json.loads(json.dumps(drift.settings)) == drift.settings
    for one, other in itertools.combinations(drifts, 2):
        assert one.settings != other.settings
    assert drifts[-1].at == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": -0.1}, r"probability is -0.1; wanted a number from 0 to 1, the chance"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"probability": math.nan}, "probability is nan"),
        ({"num_steps": 0}, "num_steps is 0; wanted a whole number"),
        ({"num_steps": 1.5}, "num_steps is 1.5"),
        ({"seed": -1}, "seed is -1; wanted an integer of at least 0"),
    ],
)
def test_drift_steps_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.data.drift_steps(**{"probability": 0.5, "num_steps": 10} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": 5}, r"at is 5; wanted a sequence of whole numbers, such as \(\) or \(100,\)"),
        ({"at": (0, 3)}, r"at\[0\] is 0; wanted a whole number above 0: give strictly ascending ones"),
        ({"at": (3, 3)}, r"at\[1\] is 3; wanted a whole number above 3"),
        ({"at": (2, 5, 4)}, r"at\[2\] is 4; wanted a whole number above 5"),
        ({"at": (1.5,)}, r"at\[0\] is 1.5"),
        ({"at": (1, math.inf)}, r"at\[1\] is inf"),
        ({"at": (math.nan,)}, r"at\[0\] is nan"),
        ({"at": (2**31,)}, r"at\[0\] is 2147483648"),
        ({"num_classes": 1}, "num_classes is 1; wanted at least 2: a single class has no other"),
        ({"num_classes": 0}, "num_classes is 0; wanted a whole number"),
        ({"num_classes": 2.5}, "num_classes is 2.5"),
        ({"seed": 0.5}, "seed is 0.5; wanted an integer"),
    ],
)
def test_label_drift_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.data.label_drift(**{"at": (1,), "num_classes": 3} | arguments)


def test_label_drift_refuses_several_labels_to_a_row():
    with pytest.raises(ValueError, match=r"labels of a batch are \(2, 6\); wanted \[B\]"):
        labels_at(fs.data.label_drift((1,), num_classes=6), 0, np.stack([LABELS, LABELS]))


@pytest.mark.parametrize("degrees", [math.nan, math.inf, -math.inf])
def test_rotation_drift_refuses_angles(degrees):
    message = f"degrees_per_step is {degrees}; wanted a finite number of degrees, such as 0.1"
    with pytest.raises(ValueError, match=message):
        fs.data.rotation_drift(degrees)


@pytest.mark.parametrize("shape", [(4,), (4, 50), (4, 0), (4, 2, 2, 2, 2)], ids=str)
def test_rotation_drift_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match=r"'x' is \(4, ?.*\); wanted images \[n, H, W\]"):
        turned(np.zeros(shape, np.float32), 1.0)
