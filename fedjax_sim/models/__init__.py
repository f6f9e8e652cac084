"""Models and the tasks made of them."""

from fedjax_sim.models.cifar import CifarCNN, cifar_cnn
from fedjax_sim.models.classifier import classifier, scale_pixels
from fedjax_sim.models.digits import (
    CNN,
    MLP,
    DropoutCNN,
    dropout_cnn,
    logistic_regression,
    mnist_2nn,
    mnist_cnn,
)
from fedjax_sim.models.language import StackedLSTM, char_lstm, language_model, word_lstm
from fedjax_sim.models.ops.conv import conv2d, max_pool2, max_pool3
from fedjax_sim.models.ops.lstm import LSTM
from fedjax_sim.models.partial import PartialTraining, trainable
from fedjax_sim.models.precision import bfloat16

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "CifarCNN",
    "DropoutCNN",
    "PartialTraining",
    "StackedLSTM",
    "bfloat16",
    "char_lstm",
    "cifar_cnn",
    "classifier",
    "conv2d",
    "dropout_cnn",
    "language_model",
    "logistic_regression",
    "max_pool2",
    "max_pool3",
    "mnist_2nn",
    "mnist_cnn",
    "scale_pixels",
    "trainable",
    "word_lstm",
]
