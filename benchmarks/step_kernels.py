"""Counts the kernels that XLA makes of one local training step.

    python benchmarks/step_kernels.py --model=2nn --lanes=16 --batch_size=10

On a GPU, launching kernels bounds a small model's step, so each of them counts, however small. This
prints what the present backend emits; a CPU only hints at what a GPU has to launch. A GPU's compiler
fuses differently, and need not move invariant code out of a loop, as a CPU's does; with
`XLA_FLAGS=--xla_disable_hlo_passes=while-loop-invariant-code-motion` a CPU's does not either.
"""

import collections
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

import fedjax_sim as fs

DIGITS = {"x": ((28, 28, 1), np.uint8), "y": ((), np.int32)}
TEXT = {"x": ((80,), np.uint16), "y": ((80,), np.int32)}
MODELS = {"2nn": (fs.models.mnist_2nn, DIGITS), "cnn": (fs.models.mnist_cnn, DIGITS)}
MODELS |= {"char-lstm": (fs.models.char_lstm, TEXT)}

_MODEL = flags.DEFINE_enum("model", "2nn", list(MODELS), "Model to train.")
_LANES = flags.DEFINE_integer("lanes", 16, "Clients side by side.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 10, "B, examples in a local batch.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File for each kernel and its source, as JSON.")

METHOD = (
    "A kernel is an instruction of a loop's body that computes or copies something, including those of "
    "calls and branches. A kernel in a loop within the step is launched at every pass, if their number "
    "is known. The step is the outermost loop that holds a product or a convolution, the widest lanes'."
)
# Opcodes of what is there already; asynchronous work counts where it starts.
_NOTHING = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all"}
_CALLS = re.compile(r"\b(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_PRODUCT = re.compile(r"gemm|matmul|conv|dot", re.IGNORECASE)


class Instruction:
    """One line of a program: `name = type opcode(operands), attributes`."""

    def __init__(self, line):
        self.name, rest = re.match(r"(?:ROOT )?%?([\w.\-]+) = (.*)", line).groups()

        def find(pattern):
            found = re.search(pattern, rest)
            return found[1] if found else ""

        # The type, which may be a tuple, ends before the first word in front of a parenthesis.
        self.opcode = find(r"(?:^|\s)([a-z][\w\-]*)\(")
        self.body = find(r"\bbody=%?([\w.\-]+)")
        branches = find(r"branch_computations=\{([^}]*)\}")
        self.calls = re.findall(r"[\w.\-]+", branches) + _CALLS.findall(rest)
        self.passes = int(find(r'"known_trip_count":\{"n":"(\d+)"\}') or 0) or None
        self.source = find(r'op_name="([^"]*)"')
        self.target = find(r'custom_call_target="([^"]*)"')


def parse(text):
    """Returns computation -> its instructions, of a compiled program; ENTRY has the key None."""
    computations, current = {}, None
    for line in text.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(None if opened[1] else opened[2], [])
        elif current is not None and re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            current.append(Instruction(line.strip()))
    return computations


def holds_product(program, name):
    """Returns whether a computation multiplies matrices or convolves, outside of its loops."""
    return any(
        one.opcode in ("dot", "convolution")
        or (one.opcode == "custom-call" and _PRODUCT.search(one.target))
        or any(holds_product(program, called) for called in one.calls)
        for one in program[name]
    )


def find_step(program, name=None):
    """Returns the body of the first outermost loop that holds a product, or None."""
    for one in program[name]:
        if one.body and holds_product(program, one.body):
            return one.body
        for inner in filter(None, (*one.calls, one.body)):
            if found := find_step(program, inner):
                return found
    return None


def kernels(program, name, passes=1):
    """Yields a row for each kernel of a computation; `passes` is None in loops of unknown length."""
    for one in program[name]:
        if one.body:
            yield from kernels(program, one.body, one.passes and passes and passes * one.passes)
        elif one.opcode in ("call", "conditional"):
            for called in one.calls:
                yield from kernels(program, called, passes)
        elif one.opcode not in _NOTHING and not one.opcode.endswith("-done"):
            yield {"kind": one.opcode, "name": one.name, "passes": passes, "source": one.source}


def compile_round(model, lanes, batch_size):
    """Returns the compiled program of a round of FedAvg, as text."""
    make_task, columns = MODELS[model]
    n, size = lanes * 6 * batch_size, 6 * batch_size
    examples = {name: np.zeros((n, *shape), dtype) for name, (shape, dtype) in columns.items()}
    data = fs.data.FederatedData(examples, np.arange(0, n + 1, size, dtype=np.int32))
    algorithm = fs.fed_avg(make_task(), client_lr=1.0, local_epochs=1, batch_size=batch_size)
    rates = {name: jnp.float32(rate) for name, rate in algorithm.hparams.items()}
    state = algorithm.init(jax.random.key(0), rates, data.num_clients)
    cohort = fs.Cohort(jnp.arange(lanes, dtype=jnp.int32), fs.Layout(lanes=lanes))
    return jax.jit(algorithm.round).lower(jax.random.key(1), state, (), data, cohort).compile().as_text()


def table(rows):
    """Returns Markdown: per kind, the kernels of the step itself and of its loops, and all launches."""
    kinds = collections.Counter(row["kind"] for row in rows)
    lines = [["kind", "in the step", "in its loops", "launches of a step"], ["---"] + ["---:"] * 3]
    for kind in [*(kind for kind, _ in kinds.most_common()), "all"]:
        chosen = [row for row in rows if kind in (row["kind"], "all")]
        own = sum(row["passes"] == 1 for row in chosen)
        known = sum(row["passes"] or 0 for row in chosen)
        lines.append([kind, str(own), str(len(chosen) - own), str(known)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(_):
    logging.set_verbosity(logging.WARNING)  # JAX logs the backends that it looks for
    program = parse(compile_round(_MODEL.value, _LANES.value, _BATCH_SIZE.value))
    step = find_step(program)
    if step is None:
        sys.exit("no loop of the compiled round holds a product; wanted one, the local step")
    rows = list(kernels(program, step))
    print(f"{_MODEL.value}, {_LANES.value} lanes, B = {_BATCH_SIZE.value}, {jax.default_backend()}\n")
    print(f"{table(rows)}\n\n{METHOD}")
    if _OUT.value:
        settings = {"model": _MODEL.value, "lanes": _LANES.value, "batch_size": _BATCH_SIZE.value}
        report = {**fs.reporting.provenance(), **settings, "method": METHOD, "kernels": rows}
        fs.reporting.write_text(_OUT.value, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
