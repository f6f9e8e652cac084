"""Examples on the devices, and functions of a model that see them in compiled batches."""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.task_checks import check_task
from fedjax_sim.core.types import Layout, Params, Task
from fedjax_sim.engine.placement import pad_rows, place
from fedjax_sim.runtime.devices import default_layout
from fedjax_sim.runtime.processes import fetch
from fedjax_sim.simulation import programs

_BATCH_SIZE = 250  # rows that a device works on at a time; bounds the memory of activations


class RowBatches:
    """Examples on the devices, padded to whole batches.

    Attributes:
      n: number of examples.
      batch_size: `B`, less where many devices share few examples.

    Args:
      task: task of the models that will see the examples.
      examples: column name -> `[n, ...]`, NumPy.
      layout: devices that share the work. By default those of the parameters if a single one has them,
        as in a sweep whose runs have a core each, and otherwise all.

    Raises:
      ValueError: `task` is no task, or there are no examples.
    """

    def __init__(self, task: Task, examples: Mapping[str, np.ndarray], layout: Layout | None):
        check_task(task)
        self.n = len(next(iter(examples.values()), ()))
        if self.n == 0:
            raise ValueError("got no examples to evaluate on; wanted at least one")
        self._columns = {name: fetch(column) for name, column in examples.items()}
        self._layout, self._everywhere = layout, layout or default_layout()
        self._model = jax.eval_shape(task.init, jax.random.key(0))
        self._placed: dict[Layout, tuple[Any, int]] = {}
        self._programs: dict[Layout, programs.Program] = {}
        self._lock = threading.Lock()  # the runs of a sweep evaluate in threads
        self.batch_size = min(self.n, _BATCH_SIZE)

    def _place(self, layout: Layout) -> tuple[Any, int]:
        """Returns rows and whether each is real, on the devices, and `B`."""
        with self._lock:
            if layout not in self._placed:
                columns = (self._columns, np.ones(self.n, bool))
                self._placed[layout] = pad_rows(columns, layout, _BATCH_SIZE)
            return self._placed[layout]

    def _layout_for(self, params: Params) -> Layout:
        if self._layout is not None:
            return self._layout
        devices = {d for leaf in jax.tree.leaves(params) for d in getattr(leaf, "devices", set)()}
        return Layout() if len(devices) == 1 else self._everywhere

    def shapes(self, fn: Callable[[Params, Any], Any]) -> Any:
        """Returns the shapes of what `fn(params, batch)` returns for a batch."""
        batch = self._shapes_of_rows(self.batch_size)
        return jax.eval_shape(fn, self._model, batch)

    def digest(self, fn: Callable[[Params, Any], Any], params: Params) -> str:
        """Identifies a function of a batch and the examples; of `params` only the shapes matter."""
        program = programs.digest(fn, programs.shapes_of(params), self._shapes_of_rows(2))
        return f"{program}-{programs.digest_arrays(self._columns)}"

    def _shapes_of_rows(self, num_rows: int) -> Any:
        return jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((num_rows, *column.shape[1:]), column.dtype),
            self._columns,
        )

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
        layout = self._layout_for(params)
        rows, batch_size = self._place(layout)
        arguments = (place(params, layout), *rows)
        static |= {"layout": layout, "batch_size": batch_size}
        if layout not in self._programs:
            self._programs[layout] = programs.trace_once(fn, *arguments, **static)
        program = self._programs[layout]
        return fetch(_run(program, layout, program.consts, *arguments))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(program: programs.Program, layout: Layout, consts: list[Any], *arguments: Any):
    return program.run(consts, *arguments)
