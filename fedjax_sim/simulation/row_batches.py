"""Examples on the devices, and functions of a model that see them in compiled batches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.task_checks import check_task
from fedjax_sim.core.types import Layout, Params, Task
from fedjax_sim.engine.placement import pad_rows, place
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation import programs

_BATCH_SIZE = 250  # rows that a device works on at a time; bounds the memory of activations


class RowBatches:
    """Examples on the devices, padded to whole batches.

    Attributes:
      n: number of examples.
      batch_size: `B`.

    Args:
      task: task of the models that will see the examples.
      examples: column name -> `[n, ...]`, NumPy.
      layout: devices that share the work.

    Raises:
      ValueError: `task` is no task, or there are no examples.
    """

    def __init__(self, task: Task, examples: Mapping[str, np.ndarray], layout: Layout):
        check_task(task)
        self.n = len(next(iter(examples.values()), ()))
        if self.n == 0:
            raise ValueError("got no examples to evaluate on; wanted at least one")
        columns = (dict(examples), np.ones(self.n, bool))
        (self._rows, self._real), self.batch_size = pad_rows(columns, layout, _BATCH_SIZE)
        self._layout = layout
        self._model = jax.eval_shape(task.init, jax.random.key(0))
        self._program: programs.Program | None = None

    def shapes(self, fn: Callable[[Params, Any], Any]) -> Any:
        """Returns the shapes of what `fn(params, batch)` returns for a batch."""
        batch = jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((self.batch_size, *column.shape[1:]), column.dtype),
            self._rows,
        )
        return jax.eval_shape(fn, self._model, batch)

    def digest(self, fn: Callable[[Params, Any], Any], params: Params) -> str:
        """Identifies a function of a batch and the examples; of `params` only the shapes matter."""
        rows = jax.tree.map(lambda column: fetch(column)[: self.n], self._rows)
        batch = jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((2, *column.shape[1:]), column.dtype), rows
        )
        return f"{programs.digest(fn, programs.shapes_of(params), batch)}-{programs.digest_arrays(rows)}"

    def run(self, fn: Callable[..., Any], params: Params, **static: Any) -> Any:
        """Returns what `fn(params, rows, real, *, layout, batch_size, **static)` returns, on the host.

        Args:
          fn: function of the padded rows and of `[n]` bool, whether each is real; compiled once, and the
            same in each call.
          params: one model of the task.
          **static: hashable values.

        Raises:
          ValueError: `params` are not one model of the task.
        """
        got, wanted = (jax.tree.map(np.shape, tree) for tree in (params, self._model))
        if got != wanted:
            raise ValueError(
                f"got parameters of the shapes {got}; wanted one model of the task, {wanted}: "
                "cluster_evaluator takes k models, [k, ...], and own_model_evaluator each client's own"
            )
        arguments = (place(params, self._layout), self._rows, self._real)
        static |= {"layout": self._layout, "batch_size": self.batch_size}
        program = self._program or programs.trace_once(fn, *arguments, **static)
        self._program = program
        return fetch(_run(program, self._layout, program.consts, *arguments))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(program: programs.Program, layout: Layout, consts: list[Any], *arguments: Any):
    return program.run(consts, *arguments)
