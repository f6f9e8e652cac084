"""Noise and rotations that differ between clients."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.data import (
    FederatedData,
    add_noise,
    from_clients,
    open_federated,
    rotate,
    rotation_drift,
    save_federated,
)

SIZES = (40, 0, 40, 40)
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])


def federation(x):
    y = np.zeros(len(x), np.int32)
    return FederatedData({"x": x, "y": y}, OFFSETS, np.array(list("abcd")), 1, "skewed")


class TestNoise:
    def test_it_grows_from_client_to_client(self):
        pixels = np.full((120, 20, 20), 51, np.uint8)
        noisy = add_noise(federation(pixels), 0.4, seed=1)
        assert noisy.examples["x"].dtype == np.float32
        for client, expected in ((0, 0.1), (2, 0.3), (3, 0.4)):
            x = noisy[client]["x"].astype(np.float64)
            deviation = np.sqrt(expected / x.size)
            assert x.mean() == pytest.approx(51 / 255, abs=4 * deviation)
            assert x.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / x.size))
        assert np.corrcoef(noisy[2]["x"].ravel(), noisy[3]["x"].ravel())[0, 1] < 0.05
        assert noisy.examples["y"].tolist() == [0] * 120
        assert (noisy.num_classes, noisy.client_ids.tolist()) == (1, list("abcd"))

    def test_it_repeats_with_its_seed(self):
        data = federation(np.ones((120, 3), np.float16))
        first, same, other = (add_noise(data, seed=seed).examples["x"] for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert (first != other).mean() > 0.9
        assert first.dtype == np.float16
        np.testing.assert_array_equal(add_noise(data, 0.0).examples["x"], data.examples["x"])

    def test_rows_that_nobody_owns_stay_zero(self):
        data = FederatedData({"x": np.ones((5, 2), np.float32)}, np.array([0, 3]))
        assert not add_noise(data).examples["x"][3:].any()

    @pytest.mark.parametrize(
        ("data", "variance", "message"),
        [
            (
                federation(np.ones((120, 3), np.int32)),
                0.1,
                "skewed: column 'x' holds int32; wanted",
            ),
            (federation(np.ones((120, 3), bool)), 0.1, "skewed: column 'x' holds bool; wanted floats"),
            (federation(np.ones((120, 3))), -1.0, "variance is -1.0; wanted a finite number"),
            (federation(np.ones((120, 3))), float("inf"), "variance is inf; wanted a finite number"),
            (
                from_clients({0: {"t": [1]}}),
                0.1,
                r"has the columns \['t'\]; wanted features in 'x'",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(self, data, variance, message):
        with pytest.raises(ValueError, match=message):
            add_noise(data, variance)


class TestRotation:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 7, 7, 2)).astype(np.uint8)

    def test_clients_take_angles_in_turn(self):
        turned = rotate(federation(self.images), (0, 90, 180))
        for client, quarters in ((0, 0), (2, 2), (3, 0)):
            expected = np.rot90(federation(self.images)[client]["x"], quarters, axes=(1, 2))
            np.testing.assert_array_equal(turned[client]["x"], expected)
        assert turned.examples["x"].dtype == np.uint8

    @pytest.mark.parametrize("degrees", [30.0, -75.5, 90.0, 450.0])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_it_is_the_drift_at_that_angle(self, degrees, dtype):
        images = (self.images / 1).astype(dtype)
        turned = rotate(federation(images), [degrees]).examples["x"]
        drifted = rotation_drift(degrees).apply({"x": jnp.asarray(images)}, jnp.int32(1))["x"]
        assert turned.dtype == drifted.dtype == dtype
        gap = np.abs(turned.astype(np.float64) - np.asarray(drifted, np.float64))
        # Roundings of .5 may differ.
        assert gap.max() <= (1 if dtype == np.uint8 else 1e-3)
        assert gap.mean() < 1e-3

    def test_flat_images_are_squares_and_oblong_ones_keep_their_shape(self):
        flat = self.images[..., 0].reshape(120, 49)
        turned = rotate(federation(flat), [90]).examples["x"]
        np.testing.assert_array_equal(
            turned.reshape(-1, 7, 7), np.rot90(self.images[..., 0], axes=(1, 2))
        )
        oblong = rotate(federation(self.images[:, :5]), [90]).examples["x"]
        assert oblong.shape == (120, 5, 7, 2)
        middle = np.rot90(self.images[:, :5, 1:6], axes=(1, 2))
        np.testing.assert_array_equal(oblong[:, :, 1:6], middle)

    def test_stored_columns_are_read(self, tmp_path):
        data = federation(self.images)
        save_federated(data, tmp_path)
        turned = rotate(open_federated(tmp_path), [180])
        assert type(turned.examples["x"]) is np.ndarray
        np.testing.assert_array_equal(turned.examples["x"], self.images[:, ::-1, ::-1])

    @pytest.mark.parametrize(
        ("shape", "degrees", "message"),
        [
            ((120, 7, 7), [], r"degrees are \[\]; wanted one or more finite angles"),
            ((120, 7, 7), [0, float("nan")], r"degrees are \[0, nan\]"),
            ((120, 10), [90], r"'x' is \(120, 10\); wanted images \[n, H, W\]"),
        ],
    )
    def test_what_cannot_be_is_refused(self, shape, degrees, message):
        with pytest.raises(ValueError, match=message):
            rotate(federation(np.zeros(shape, np.uint8)), degrees)
