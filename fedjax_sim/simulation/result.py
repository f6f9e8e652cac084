"""What a run yields, as arrays and as a summary."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fedjax_sim import trees
from fedjax_sim.base import Layout
from fedjax_sim.simulation.compilations import CompilationCounter


def rounds_to_target(rounds: Any, accuracies: Any, target: float) -> float | None:
    """The round at which a curve, made monotone, first reaches a target.

    The curve is replaced by its running maximum and read by linear interpolation between the two
    evaluations around the crossing (McMahan et al., "Communication-efficient learning of deep
    networks from decentralized data", AISTATS 2017, section 3).

    Args:
      rounds: `[n]`, ascending.
      accuracies: `[n]`.
      target: in the unit of the accuracies.

    Returns:
      The round, or None where the curve stays below the target.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, np.float64))
    rounds = np.asarray(rounds, np.float64)
    reached = np.flatnonzero(best >= target)
    if not reached.size:
        return None
    after = reached[0]
    if after == 0:
        return float(rounds[0])
    before = after - 1
    share = (target - best[before]) / (best[after] - best[before])
    return float(rounds[before] + share * (rounds[after] - rounds[before]))


@dataclasses.dataclass
class Block:
    """Some rounds in one compiled program: how many, how long, on how many examples."""

    rounds: int
    seconds: float = 0.0
    examples: int = 0
    compiled: bool = False


@dataclasses.dataclass
class Timing:
    """The clock of one process's part of a run.

    Attributes:
      counter: of compilations.
      blocks: in order.
    """

    counter: CompilationCounter
    blocks: list[Block] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def block(self, rounds: int) -> Iterator[Block]:
        """Times the block of rounds that runs inside; its last line must wait for the result."""
        block, before = Block(rounds), self.counter.count
        started = time.perf_counter()
        yield block
        block.seconds = time.perf_counter() - started
        block.compiled = self.counter.count > before
        self.blocks.append(block)

    @property
    def _warm(self) -> list[Block]:
        return [block for block in self.blocks if not block.compiled]

    def seconds_per_round(self) -> float | None:
        """The median over blocks in which nothing was compiled; None without such a block."""
        per_round = [block.seconds / block.rounds for block in self._warm]
        return statistics.median(per_round) if per_round else None

    def examples_per_second(self) -> float | None:
        """Examples trained on, once per epoch, over the time of the blocks without compilation."""
        seconds = sum(block.seconds for block in self._warm)
        return sum(block.examples for block in self._warm) / seconds if seconds else None


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      state: the algorithm's state; `state.params` is the model.
      rows: one dict per evaluation, as in metrics.jsonl.
      target: the accuracy asked for, or None.
      timing: of this process's part.
      layout: lanes and devices.
    """

    state: Any
    rows: list[dict]
    target: float | None
    timing: Timing
    layout: Layout

    @property
    def params(self) -> Any:
        """The trained model."""
        return self.state.params

    def history(self) -> dict[str, np.ndarray]:
        """The rows as columns, name -> `[evaluations]`."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {
            name: np.array([row.get(name, np.nan) for row in self.rows], np.float64)
            for name in names
        }

    def summary(self) -> dict[str, Any]:
        """The run in numbers, ready for JSON."""
        curve = [(r["round"], r["test_accuracy"]) for r in self.rows if "test_accuracy" in r]
        rounds, accuracies = zip(*curve, strict=True) if curve else ((), ())
        last = self.rows[-1]
        reached = None
        if self.target is not None and curve:
            reached = rounds_to_target(rounds, accuracies, self.target)
        return {
            "num_params": trees.num_params(self.params),
            "rounds": last["round"],
            "best_accuracy": max(accuracies, default=None),
            "final_accuracy": accuracies[-1] if curve else None,
            "target_accuracy": self.target,
            "rounds_to_target": reached,
            "seconds_per_round": self.timing.seconds_per_round(),
            "compile_seconds": self.timing.counter.seconds,
            "compilations": self.timing.counter.count,
            "examples_per_second": self.timing.examples_per_second(),
            "padding_waste": 1 - last["examples"] / last["slots"] if last["slots"] else 0.0,
            "bytes_up": last["bytes_up"],
            "bytes_down": last["bytes_down"],
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "devices": self.layout.num_devices,
            "lanes": self.layout.lanes,
        }
