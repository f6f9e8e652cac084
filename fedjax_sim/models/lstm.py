"""A long short-term memory layer whose gradient is written out, so that it is fast in loops.

S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; forget gates of
F. Gers, J. Schmidhuber, F. Cummins, "Learning to forget", Neural Computation 12(10), 2000; peepholes
of F. Gers, J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.

Letters: `T` time steps, `B` sequences, `I` inputs, `H` units. The four gates stand side by side in
`4 H` columns: input i, candidate g, forget f, output o.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_FORGET_BIAS = 1.0  # begins by remembering, as TensorFlow's cells do; no parameter


class LSTM(nn.Module):
    """One layer with ONE bias vector: `4 ((I + H) H + H)` parameters, and `3 H` peepholes.

    Attributes:
      units: `H`.
      peepholes: whether the gates i and f see the cell before the step, and o the one after it, each
        weighted by a vector of its own, as in TensorFlow's `LSTMCell(use_peepholes=True)`.
    """

    units: int
    peepholes: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[T, B, I]` to `[T, B, H]`, from a state of zeros."""
        inputs, units = x.shape[-1], self.units
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (inputs + units, 4 * units))
        bias = self.param("bias", nn.initializers.zeros, (4 * units,))
        peepholes = jnp.zeros((3, units))
        if self.peepholes:
            peepholes = self.param("peepholes", nn.initializers.zeros, (3, units))
        # The inputs of all steps at once; only the recurrent product has to wait for the step before.
        z = jnp.tensordot(x, kernel[:inputs], 1) + bias[None, None]
        return _recurrence(z, kernel[inputs:], peepholes)


@jax.custom_vjp
def _recurrence(z: jax.Array, kernel: jax.Array, peepholes: jax.Array) -> jax.Array:
    """Steps through time.

    Autodiff would add a product of B rows to the kernel's gradient at every step; here the gradients
    of the gates are kept, and ONE product of T * B rows follows.

    Args:
      z: `[T, B, 4 H]`, what the inputs and biases give to the gates.
      kernel: `[H, 4 H]`, recurrent.
      peepholes: `[3, H]`, of i, f and o.

    Returns:
      `[T, B, H]`.
    """
    return _forward(z, kernel, peepholes)[0]


def _forward(z, kernel, peepholes):
    w_i, w_f, w_o = peepholes[:, None]

    def step(carry, z):
        h, c = carry
        z_i, z_g, z_f, z_o = jnp.split(z + h @ kernel, 4, axis=-1)
        i, g = jax.nn.sigmoid(z_i + w_i * c), jnp.tanh(z_g)
        f = jax.nn.sigmoid(z_f + w_f * c + _FORGET_BIAS)
        c = f * c + i * g
        o = jax.nn.sigmoid(z_o + w_o * c)
        h = o * jnp.tanh(c)
        return (h, c), (h, c, jnp.concatenate([i, g, f, o], axis=-1))

    start = jnp.zeros((z.shape[1], kernel.shape[0]), z.dtype)
    _, (h, c, gates) = jax.lax.scan(step, (start, start), z)
    return h, (h, c, gates, kernel, peepholes)


def _backward(residuals, dh_all):
    h, c, gates, kernel, peepholes = residuals
    w_i, w_f, w_o = peepholes[:, None]
    before = jnp.zeros_like(c[:1])
    c_before = jnp.concatenate([before, c[:-1]])
    h_before = jnp.concatenate([before, h[:-1]])

    def step(carry, inputs):
        dh, dc = carry
        dh_out, c, c_before, gates = inputs
        i, g, f, o = jnp.split(gates, 4, axis=-1)
        dh, tanh_c = dh + dh_out, jnp.tanh(c)
        dz_o = dh * tanh_c * o * (1 - o)
        dc = dc + dh * o * (1 - tanh_c * tanh_c) + dz_o * w_o
        dz_i = dc * g * i * (1 - i)
        dz_g = dc * i * (1 - g * g)
        dz_f = dc * c_before * f * (1 - f)
        dz = jnp.concatenate([dz_i, dz_g, dz_f, dz_o], axis=-1)
        return (dz @ kernel.T, dc * f + dz_i * w_i + dz_f * w_f), dz

    start = (before[0], before[0])
    _, dz = jax.lax.scan(step, start, (dh_all, c, c_before, gates), reverse=True)
    dz_i, _, dz_f, dz_o = jnp.split(dz, 4, axis=-1)
    dpeepholes = [(dz_i * c_before), (dz_f * c_before), (dz_o * c)]
    dkernel = jnp.tensordot(h_before, dz, ((0, 1), (0, 1)))
    return dz, dkernel, jnp.stack([d.sum((0, 1)) for d in dpeepholes])


_recurrence.defvjp(_forward, _backward)
