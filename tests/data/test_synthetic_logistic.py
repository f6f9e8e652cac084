"""FedProx's synthetic clients: sizes, shapes, what beta changes, and bad settings."""

import numpy as np
import pytest

from fedjax_sim.data import synthetic_logistic


def test_sizes_shapes_and_seeds():
    train, test = synthetic_logistic(1.0, 1.0, seed=3)
    again, _ = synthetic_logistic(1.0, 1.0, seed=3)
    sizes = np.asarray(train.sizes) + np.asarray(test.sizes)
    assert train.num_clients == test.num_clients == 30
    assert sizes.min() >= 50
    np.testing.assert_array_equal(train.sizes, (sizes * 0.9).astype(int))
    assert train.examples["x"].shape == (sum(train.sizes), 60)
    assert set(np.unique(train.examples["y"])) <= set(range(10))
    np.testing.assert_array_equal(train.examples["x"], again.examples["x"])
    assert len(synthetic_logistic(1.0, 1.0, seed=4)[0].examples["x"]) != len(train.examples["x"])


def clients_of(data, column):
    return [data.examples[column][a:b] for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)]


def test_beta_moves_inputs_and_variances_fall_with_the_feature():
    still, _ = synthetic_logistic(0.0, 0.0, seed=0, iid=True)
    moved, _ = synthetic_logistic(0.0, 3.0, seed=0)
    means = [np.std([x.mean() for x in clients_of(data, "x")]) for data in (still, moved)]
    assert means[0] < 0.05 < 2 < means[1]
    deviations = still.examples["x"].std(axis=0)
    np.testing.assert_allclose(deviations, np.arange(1, 61) ** -0.6, rtol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; wanted a finite number"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"num_clients": 0}, "num_clients is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        synthetic_logistic(**({"alpha": 1.0, "beta": 1.0} | settings))
