"""The models that the FedAvg paper trains on MNIST, and logistic regression.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-efficient learning
of deep networks from decentralized data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3.
The paper does not give its initialisation; kernels are Glorot-uniform and biases zero, as in the
code that its authors' group published later.
"""

import flax.linen as nn
import jax

from fedjax_sim.base import Task
from fedjax_sim.models.classifier import classifier
from fedjax_sim.models.conv import conv2d, max_pool2

_glorot = nn.initializers.glorot_uniform()


class MLP(nn.Module):
    """Dense layers with ReLU between them; `features` ends with the number of classes."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, ...]` to logits `[B, features[-1]]`."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            x = nn.Dense(width, kernel_init=_glorot)(x if i == 0 else nn.relu(x))
        return x


class ConvPool(nn.Module):
    """A SAME convolution of `features` kernels, biases, ReLU and 2 x 2 max-pooling."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, H/2, W/2, features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _glorot, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # A maximum passes through biases and ReLU, which then touch a quarter of the numbers.
        return nn.relu(max_pool2(conv2d(x, kernel)) + bias[None, None, None])


class CNN(nn.Module):
    """5 x 5 convolutions of 32 and 64 channels, each max-pooled, a layer of 512, logits."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]`, H and W multiples of 4, to logits `[B, num_classes]`."""
        x = ConvPool(32, 5)(x)
        x = ConvPool(64, 5)(x)
        return MLP((512, self.num_classes))(x)


def mnist_2nn(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Task:
    """Two hidden layers of 200 ReLU units: 199,210 parameters on 28 x 28 digits."""
    return classifier(MLP((200, 200, num_classes)), input_shape)


def mnist_cnn(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Task:
    """The paper's convolutional network: 1,663,370 parameters on 28 x 28 digits."""
    return classifier(CNN(num_classes), input_shape)


def logistic_regression(num_classes: int = 10, input_shape: tuple[int, ...] = (28, 28, 1)) -> Task:
    """One linear layer: 7,850 parameters on 28 x 28 digits."""
    return classifier(MLP((num_classes,)), input_shape)
