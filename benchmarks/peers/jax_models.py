"""The compared models of images in plain JAX, for libraries that take functions of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, padding="SAME"):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), padding, dimension_numbers=dimensions)
    return y + p["bias"]


def max_pool(x):
    # `reduce_window`, which haiku's pooling calls, takes a round of the CNN from 0.55 to 0.59 s.
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def drop(rng, rate, x):
    """Drops units; none if `rng` is None."""
    if rng is None:
        return x
    return jnp.where(jax.random.bernoulli(rng, 1 - rate, x.shape), x / (1 - rate), 0)


def two_nn(params, batch, rng=None):
    x = batch["x"].reshape(-1, 784)
    x = jax.nn.relu(dense(params["fc1"], x))
    x = jax.nn.relu(dense(params["fc2"], x))
    return dense(params["fc3"], x)


def cnn(params, batch, rng=None):
    x = max_pool(jax.nn.relu(conv(params["conv1"], batch["x"])))
    x = max_pool(jax.nn.relu(conv(params["conv2"], x)))
    x = jax.nn.relu(dense(params["fc1"], x.reshape(-1, 3136)))
    return dense(params["fc2"], x)


def dropout_cnn(params, batch, rng=None):
    first, second = (None, None) if rng is None else jax.random.split(rng)
    x = jax.nn.relu(conv(params["conv1"], batch["x"], "VALID"))
    x = max_pool(jax.nn.relu(conv(params["conv2"], x, "VALID")))
    x = drop(first, 0.25, x).reshape(len(x), -1)
    x = drop(second, 0.5, jax.nn.relu(dense(params["fc1"], x)))
    return dense(params["fc2"], x)


def images(x):
    return x.astype(np.float32) / 255


def cross_entropy(batch, logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


# Name -> (function that computes logits, function that prepares the job's x).
MODELS = {"2nn": (two_nn, images), "cnn": (cnn, images), "dropout-cnn": (dropout_cnn, images)}
