"""A long short-term memory layer with a hand-written gradient, which is fast in loops.

S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; forget gates of
F. Gers, J. Schmidhuber, F. Cummins, "Learning to forget", Neural Computation 12(10), 2000; peepholes
of F. Gers, J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.

Letters: `T` time steps, `B` sequences, `I` inputs, `H` units. The four gates lie side by side in `4 H`
columns: input i, candidate g, forget f, output o.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_FORGET_BIAS = 1.0  # a constant: cells begin by remembering, as TensorFlow's do


class LSTM(nn.Module):
    """One layer with one bias vector: `4 ((I + H) H + H)` parameters, and `3 H` peepholes.

    Attributes:
      units: number of units, `H`.
      peepholes: whether the gates i and f see the cell before the step, and o the cell after it, each
        weighted by its own vector, as in TensorFlow's `LSTMCell(use_peepholes=True)`.
    """

    units: int
    peepholes: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[T, B, I]` to `[T, B, H]`, from a state of zeros."""
        inputs, units = x.shape[-1], self.units
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (inputs + units, 4 * units))
        bias = self.param("bias", nn.initializers.zeros, (4 * units,))
        peepholes = jnp.zeros((3, units), kernel.dtype)
        if self.peepholes:
            peepholes = self.param("peepholes", nn.initializers.zeros, (3, units))
        # The inputs of all steps at once; only the recurrent product must wait for the previous step.
        of_inputs, recurrent = jnp.split(kernel, [inputs])
        z = jnp.tensordot(x, of_inputs, 1) + bias[None, None]
        return _recurrence(z, recurrent, peepholes)


@jax.custom_vjp
def _recurrence(z: jax.Array, kernel: jax.Array, peepholes: jax.Array) -> jax.Array:
    """Steps through time.

    Autodiff would add a product of B rows to the kernel's gradient at every step; here the gradients of
    the gates are kept, and one product of T * B rows follows. Forward steps keep the factors of the
    backward steps, since they have computed all of their parts.

    Args:
      z: contribution of the inputs and biases to the gates, `[T, B, 4 H]`.
      kernel: recurrent kernel, `[H, 4 H]`.
      peepholes: peepholes of i, f and o, `[3, H]`.

    Returns:
      `[T, B, H]`.
    """

    def read_ahead(carry, t):
        h, c, now = carry
        h, c, *_ = _step(h, c, now, kernel, peepholes)
        # Read the next step's row one step ahead: fused into the gates, the look-up keeps XLA from
        # vectorising them, which cost a third of an evaluation's time.
        return (h, c, z[jnp.minimum(t + 1, len(z) - 1)]), h

    start = jnp.zeros((z.shape[1], kernel.shape[0]), z.dtype)
    return jax.lax.scan(read_ahead, (start, start, z[0]), jnp.arange(len(z)))[1]


def _step(h, c_before, z, kernel, peepholes):
    """Runs one step; returns h, c, and the factors of the backward step.

    The gradient of z_o is dh times `o_h`; dc gains dh times `c_h`; and the gradients of z_i, z_g, z_f
    and of the previous c are dc times the other four.
    """
    w_i, w_f, w_o = peepholes[:, None]
    z_i, z_g, z_f, z_o = jnp.split(z + h @ kernel, 4, axis=-1)
    i, g = jax.nn.sigmoid(z_i + w_i * c_before), jnp.tanh(z_g)
    f = jax.nn.sigmoid(z_f + w_f * c_before + _FORGET_BIAS)
    c = f * c_before + i * g
    o = jax.nn.sigmoid(z_o + w_o * c)
    tanh_c = jnp.tanh(c)
    o_h = tanh_c * o * (1 - o)
    c_h = o * (1 - tanh_c * tanh_c) + o_h * w_o
    i_c, g_c, f_c = g * i * (1 - i), i * (1 - g * g), c_before * f * (1 - f)
    before_c = f + i_c * w_i + f_c * w_f
    return o * tanh_c, c, o_h, c_h, i_c, g_c, f_c, before_c


def _forward(z, kernel, peepholes):
    def step(carry, z):
        h, c, *factors = _step(*carry, z, kernel, peepholes)
        return (h, c), (h, c, *factors)

    start = jnp.zeros((z.shape[1], kernel.shape[0]), z.dtype)
    _, (h, c, *factors) = jax.lax.scan(step, (start, start), z)
    return h, (h, c, factors, kernel)


def _backward(residuals, dh_all):
    h, c, factors, kernel = residuals
    c_before = jnp.concatenate([jnp.zeros_like(c[:1]), c[:-1]])
    # Transpose once: on a CPU, a product of few rows with a matrix stored the other way round runs at
    # 0.4 of the speed.
    transposed = kernel.T

    def step(carry, factors):
        dh, dc = carry
        dh_out, o_h, c_h, i_c, g_c, f_c, before_c = factors
        dh = dh + dh_out
        dc = dc + dh * c_h
        dz = jnp.concatenate([dc * i_c, dc * g_c, dc * f_c, dh * o_h], axis=-1)
        return (dz @ transposed, dc * before_c), dz

    start = jnp.zeros_like(c[0])
    _, dz = jax.lax.scan(step, (start, start), (dh_all, *factors), reverse=True)
    dz_i, _, dz_f, dz_o = jnp.split(dz, 4, axis=-1)
    dpeepholes = [(dz_i * c_before), (dz_f * c_before), (dz_o * c)]
    dkernel = jnp.tensordot(h[:-1], dz[1:], ((0, 1), (0, 1)))
    return dz, dkernel, jnp.stack([d.sum((0, 1)) for d in dpeepholes])


_recurrence.defvjp(_forward, _backward)
