"""Metrics of each class of a classifier."""

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Batch, Params, Task


def with_class_metrics(task: Task) -> Task:
    """Returns the same task with metrics of each class.

    "class_accuracy" `[classes]` is the share of each label's examples that are predicted right (recall),
    NaN for a label without examples. "confusion_matrix" `[classes, classes]` holds the share of all
    examples with label i, the row, for which j is predicted; the number of examples times it are counts.

    Args:
      task: task of a classifier, with `num_classes` and `predict`.

    Raises:
      ValueError: the task has no classes or no predictions. Metrics raise it if predictions are not
        scores `[B, classes]`, or if labels are not `[B]`.
    """
    num_classes, predict = task.num_classes, task.predict
    if num_classes is None or predict is None:
        raise ValueError(
            f"the task has num_classes {num_classes} and {'no' if predict is None else 'a'} predict; "
            "wanted both, as fs.models.classifier sets them"
        )

    def metrics(params: Params, batch: Batch):
        y, scores = batch["y"], predict(params, batch)
        if y.ndim != 1 or scores.shape != (len(y), num_classes):
            raise ValueError(
                f"labels have the shape {[*y.shape]} and predictions {[*scores.shape]}; wanted a label "
                f"and {num_classes} scores for each example, as fs.models.classifier has them"
            )
        true = jax.nn.one_hot(y, num_classes)
        predicted = jax.nn.one_hot(jnp.argmax(scores, axis=-1), num_classes)
        return task.metrics(params, batch) | {
            "class_accuracy": (true * predicted, true),
            "confusion_matrix": (true[:, :, None] * predicted[:, None, :], jnp.ones(len(y))),
        }

    return task._replace(metrics=metrics)
