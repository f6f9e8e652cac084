"""Models and the tasks made of them."""

from fedjax_sim.models.cifar import CifarCNN, cifar_cnn
from fedjax_sim.models.class_metrics import with_class_metrics
from fedjax_sim.models.classifier import classifier
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
from fedjax_sim.models.multilabel import multilabel
from fedjax_sim.models.network import scale_pixels
from fedjax_sim.models.ops.conv import conv2d, max_pool2, max_pool3
from fedjax_sim.models.ops.lstm import LSTM
from fedjax_sim.models.own_loss import from_loss
from fedjax_sim.models.partial import PartialTraining, trainable
from fedjax_sim.models.precision import bfloat16
from fedjax_sim.models.regressor import regressor
from fedjax_sim.models.resnet import ResNet18, resnet18
from fedjax_sim.models.transformer import Transformer, transformer
from fedjax_sim.models.vit import ViT, vit

__all__ = [
    "CNN",
    "LSTM",
    "MLP",
    "CifarCNN",
    "DropoutCNN",
    "PartialTraining",
    "ResNet18",
    "StackedLSTM",
    "Transformer",
    "ViT",
    "bfloat16",
    "char_lstm",
    "cifar_cnn",
    "classifier",
    "conv2d",
    "dropout_cnn",
    "from_loss",
    "language_model",
    "logistic_regression",
    "max_pool2",
    "max_pool3",
    "mnist_2nn",
    "mnist_cnn",
    "multilabel",
    "regressor",
    "resnet18",
    "scale_pixels",
    "trainable",
    "transformer",
    "vit",
    "with_class_metrics",
    "word_lstm",
]
