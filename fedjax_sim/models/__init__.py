"""Models and the tasks made of them."""

from fedjax_sim.models.classifier import classifier, scale_pixels
from fedjax_sim.models.conv import conv2d, max_pool2
from fedjax_sim.models.digits import CNN, MLP, logistic_regression, mnist_2nn, mnist_cnn

__all__ = [
    "CNN",
    "MLP",
    "classifier",
    "conv2d",
    "logistic_regression",
    "max_pool2",
    "mnist_2nn",
    "mnist_cnn",
    "scale_pixels",
]
