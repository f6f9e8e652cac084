"""`FederatedData`: the examples of all clients in one array, client after client."""

import dataclasses
import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core import html
from fedjax_sim.data.description import Description, Spread
from fedjax_sim.data.storage import mapped
from fedjax_sim.data.validation import check_examples, check_values, checked_label_names, checked_offsets

_PIECE_ROWS = 2**18  # rows whose labels are counted at a time


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class FederatedData:
    """The examples of `N` clients, `n` in all; client k owns rows `offsets[k]:offsets[k + 1]`.

    A pytree of `examples` and `offsets`. Pass it to a jitted function as an argument: closed over,
    the data would become part of the program. The other attributes describe the data on the host.
    Inside jitted functions, and in results of `jax.tree.map` or `jax.device_put`, they are None, so
    that federations of equal shapes share one compiled program. `place` moves the data and keeps them.

    If the offsets are on the host, the constructor checks everything but the values of the examples.
    `check` looks at those; `simulate` and `sweep` call it before anything else.

    Attributes:
      examples: column name -> `[n, ...]`, in the storage dtype: NumPy arrays, memory-mapped files
        (see `open_federated`), or arrays on devices (see `place`). Rows after the last client's
        belong to nobody.
      offsets: `[N + 1]` int32, ascending from 0 to at most `n`; NumPy integers of other widths are
        converted.
      client_ids: NumPy array `[N]`, the data set's name for each client.
      num_classes: number of labels.
      name: name shown in descriptions.
      label_names: name of each label, `num_classes` different strings, or None.

    Raises:
      ValueError: the offsets are not ascending 32-bit integers from 0 to at most n, columns differ in
        length or are not numeric, `client_ids` are not one per client, `num_classes` is not a positive
        integer, or `label_names` are not one for each class.
    """

    examples: dict[str, Any]
    offsets: Any
    client_ids: np.ndarray | None = None
    num_classes: int | None = None
    name: str | None = None
    label_names: tuple[str, ...] | None = None

    def __post_init__(self):
        # Offsets on devices may be tracers, or the concatenated offsets of several devices.
        if isinstance(self.offsets, np.ndarray | Sequence):
            object.__setattr__(self, "offsets", checked_offsets(*self._all()))
        if self.label_names is not None:
            names = checked_label_names(self.name, self.label_names, self.num_classes)
            object.__setattr__(self, "label_names", names)

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("examples"), self.examples), (key("offsets"), self.offsets)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        # Bypasses the constructor: its checks do not apply to JAX's placeholders for arrays.
        made = object.__new__(cls)
        for name, value in zip(("examples", "offsets"), children, strict=True):
            object.__setattr__(made, name, value)
        return made

    @property
    def num_clients(self) -> int:
        return self.offsets.shape[0] - 1

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: int) -> dict[str, Any]:
        """Returns the examples of the client at a position, column name -> `[n_k, ...]`.

        Its id is `client_ids[client]`; for several clients see `select`.
        """
        if isinstance(client, bool) or not hasattr(client, "__index__"):
            raise TypeError(
                f"client is {client!r}; wanted a position from 0 to {self.num_clients - 1}: ids are in "
                "client_ids, several clients come from select"
            )
        client = operator.index(client)
        if not -self.num_clients <= client < self.num_clients:
            raise IndexError(f"there is no client {client}; wanted 0 to {self.num_clients - 1}")
        start, end = map(int, self.offsets[client % self.num_clients :][:2])
        for column in self.examples.values():
            mapped.check_length(column)
        return {name: column[start:end] for name, column in self.examples.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[client] for client in range(self.num_clients))

    def __repr__(self) -> str:
        if not isinstance(self.offsets, np.ndarray):  # on devices, in a program, or a placeholder
            leaves = {**self.examples, "offsets": self.offsets}
            shapes = {name: getattr(leaf, "shape", leaf) for name, leaf in leaves.items()}
            return f"<data: {shapes}>"
        rows = {name: f"{c.dtype}{list(c.shape[1:])}" for name, c in self.examples.items()}
        columns = ", ".join(f"{name} {kind}" for name, kind in rows.items())
        labels = "" if self.num_classes is None else f", {self.num_classes} classes"
        length = int(self.offsets[-1])
        title = self.name or "data"
        return f"<{title}: {self.num_clients:,} clients, {length:,} examples of {columns}{labels}>"

    def _repr_html_(self) -> str:
        if not isinstance(self.offsets, np.ndarray):
            return html.table(repr(self), ())
        sizes = np.sort(self.sizes)
        spread = f"{sizes[0]:,} to {sizes[-1]:,}, median {np.median(sizes):,g}" if sizes.size else "none"
        lines = [("clients", f"{self.num_clients:,}"), ("examples", f"{int(self.offsets[-1]):,}")]
        lines += [("examples of a client", spread)]
        lines += [] if self.num_classes is None else [("classes", self.num_classes)]
        for name, column in self.examples.items():
            lines.append((f"column {name}", f"{column.dtype}{list(column.shape[1:])}"))
        return html.table(self.name or "data", lines)

    @property
    def sizes(self):
        """Number of rows that each client owns, `[N]` int32."""
        return self.offsets[1:] - self.offsets[:-1]

    def pooled(self) -> "FederatedData":
        """Returns the same rows owned by a single client, as centralised training sees them."""
        offsets = np.array([0, self.offsets[-1]], np.int32)
        return dataclasses.replace(self, offsets=offsets, client_ids=np.zeros(1, np.int64))

    def place(self, where: jax.Device | jax.sharding.Sharding) -> "FederatedData":
        """Returns a copy with its arrays on `where`, a device or a sharding.

        Raises:
          ValueError: a stored column is not what was written.
        """
        for column in self.examples.values():
            mapped.verify(column)
        examples, offsets = jax.device_put((self.examples, self.offsets), where)
        return dataclasses.replace(self, examples=examples, offsets=offsets)

    def in_memory(self) -> "FederatedData":
        """Returns a copy with its memory-mapped columns read into memory.

        Raises:
          ValueError: a stored column is not what was written.
        """
        columns = self.examples.items()
        for column in self.examples.values():
            mapped.verify(column)
        read = {name: np.array(c) if isinstance(c, np.memmap) else c for name, c in columns}
        return dataclasses.replace(self, examples=read)

    def select(self, clients: np.ndarray, num_rows: int | None = None) -> "FederatedData":
        """Gathers the rows of some clients in memory; the data must be on the host.

        Time and memory depend on the selection, not on the size of the federation.

        Args:
          clients: client indices, `[K]` integers.
          num_rows: length of the new columns, by default the number of rows that the clients own;
            zeros fill the rest.

        Raises:
          ValueError: the clients own more than `num_rows` rows, or a data file has shrunk.
        """
        starts, ends = self.offsets[clients], self.offsets[clients + 1]
        offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
        if num_rows is not None and num_rows < offsets[-1]:
            raise ValueError(f"num_rows is {num_rows}; wanted at least the {offsets[-1]} rows owned")
        owned = list(zip(starts.tolist(), ends.tolist(), strict=True))

        def gather(column):
            mapped.check_length(column)
            num = offsets[-1] if num_rows is None else num_rows
            rows, source = np.zeros((num, *column.shape[1:]), column.dtype), np.asarray(column)
            if owned:
                np.concatenate([source[start:end] for start, end in owned], out=rows[: offsets[-1]])
            mapped.release(column)
            return rows

        return dataclasses.replace(
            self,
            examples={name: gather(column) for name, column in self.examples.items()},
            offsets=offsets,
            client_ids=None if self.client_ids is None else self.client_ids[clients],
        )

    def check_files(self) -> None:
        """Checks that no file of a memory-mapped column has shrunk.

        Raises:
          ValueError: a file has shrunk.
        """
        for column in self.examples.values():
            mapped.check_length(column)

    def check(self, num_classes: int | None = None) -> None:
        """Checks every value that a client owns, some rows at a time, and the structure again.

        * Columns of `open_federated` are compared with their digests, once per object.
        * Floats must be finite, and 64-bit numbers must fit the dtype in which devices hold them.
        * Integers in a column `"y"` must be labels in `[0, num_classes)`, if the attribute or the
          argument of this name is given.

        Columns on devices are copied to the host one at a time; columns that other processes hold
        parts of are skipped.

        Args:
          num_classes: number of labels that the model distinguishes.

        Raises:
          ValueError: a file has shrunk or is not what was written, or a value is unusable; the error
            names the column, the row and its client.
        """
        known = [n for n in (self.num_classes, num_classes) if n is not None]
        whole = dataclasses.replace(self, num_classes=min(known)) if known else self
        check_examples(*whole._all())

    def digest(self) -> str:
        """Returns a digest of the examples and their owners, so that no run resumes on other data.

        Columns of `open_federated` that `check` has verified are not read again.

        Raises:
          ValueError: a data file has shrunk, or is not what was written.
        """
        digest = hashlib.sha256(np.asarray(self.offsets).tobytes())
        for name in sorted(self.examples):
            column = np.asanyarray(self.examples[name])
            about = f"{name} {column.dtype} {column.shape} {mapped.digest(column)}"
            digest.update(about.encode())
        return digest.hexdigest()[:16]

    def label_histogram(self) -> np.ndarray:
        """Counts each client's labels, `[N, num_classes]` int64.

        Raises:
          ValueError: this is a copy without `num_classes`, there are no integer labels, or a label is
            out of range.
        """
        num_classes = self._known_classes()
        counts = np.zeros((self.num_clients, num_classes), np.int64)
        for first, last, pairs in self._owned_labels(num_classes):
            part = np.bincount(pairs, minlength=(last - first) * num_classes)
            counts[first:last] = part.reshape(last - first, num_classes)
        return counts

    def plot_labels(self, ax: Any = None) -> Any:
        """Draws each client's examples as a bar stacked by label, in the clients' order.

        A large federation shows only evenly spaced clients, and the title says so.

        Args:
          ax: matplotlib Axes to draw on; by default new ones.

        Returns:
          The Axes.

        Raises:
          ValueError: see `describe`; or there are more than a hundred labels.
        """
        from fedjax_sim.reporting.run_curves import plot_clients

        return plot_clients(self, ax)

    def describe(self) -> Description:
        """Counts clients, examples and labels; print the result.

        Raises:
          ValueError: this is a copy without `num_classes`, there are no integer labels, or a label is
            out of range.
        """
        num_classes = self._known_classes()
        label_counts = np.zeros(num_classes, np.int64)
        distinct = np.zeros(self.num_clients, np.int64)
        for first, last, pairs in self._owned_labels(num_classes):
            label_counts += np.bincount(pairs % num_classes, minlength=num_classes)
            # Only pairs that occur: a full table of clients by labels can exceed memory. Sorting is
            # twenty times as fast as the hashing of np.unique.
            pairs.sort()
            owners = pairs[np.diff(pairs, prepend=-1) > 0] // num_classes
            distinct[first:last] = np.bincount(owners, minlength=last - first)
        sizes = np.asarray(self.sizes)
        return Description(
            name=self.name or "data",
            num_clients=self.num_clients,
            num_examples=int(sizes.sum()),
            empty_clients=int((sizes == 0).sum()),
            sizes=Spread.of(sizes),
            labels_per_client=Spread.of(distinct[sizes > 0]),
            label_counts=label_counts,
            label_names=self.label_names,
        )

    def _known_classes(self) -> int:
        labels = self.examples.get("y")
        if labels is None or np.dtype(labels.dtype).kind not in "iu":
            raise ValueError(
                f"{self.name or 'data'} has no column 'y' of integers; wanted labels to count."
            )
        if self.num_classes is None:
            raise ValueError(
                "num_classes is None, as in any result of a jitted function, jax.tree.map or "
                "jax.device_put; call this on what federate returned, and move data with place."
            )
        return self.num_classes

    def _all(self) -> tuple:
        return self.examples, self.offsets, self.client_ids, self.num_classes, self.name

    def _owned_labels(self, num_classes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields all labels, a range of whole clients at a time.

        Yields:
          The range's first client, the one after its last, and for each label in it
          `(client - first) * num_classes + label`, int64.
        """
        offsets = np.asarray(self.offsets, np.int64)
        column = np.asanyarray(self.examples["y"])
        first = 0
        while first < self.num_clients:
            full = np.searchsorted(offsets, offsets[first] + _PIECE_ROWS, side="right") - 1
            last = max(first + 1, int(full))
            mapped.check_length(column)
            labels = column[offsets[first] : offsets[last]].astype(np.int64)
            mapped.release(column)
            check_values("y", labels, int(offsets[first]), *self._all()[1:])
            clients = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
            clients = np.repeat(clients, labels[:1].size)
            yield first, last, clients * num_classes + labels.reshape(-1)
            first = last
