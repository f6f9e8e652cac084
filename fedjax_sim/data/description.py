"""Counts of what a federation holds."""

import dataclasses

import numpy as np

_MAX_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Spread:
    """The smallest, the median, the mean and the largest of some counts."""

    min: int
    median: float
    mean: float
    max: int

    @classmethod
    def of(cls, counts: np.ndarray) -> "Spread":
        """The spread of `counts` `[m]`, m at least 1."""
        return cls(int(counts.min()), float(np.median(counts)), float(counts.mean()), int(counts.max()))

    def __str__(self) -> str:
        return f"min {self.min:,}, median {self.median:,g}, mean {self.mean:,.1f}, max {self.max:,}"


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """The counts of a federation; `str` of it is readable.

    Attributes:
      name: the data set's.
      num_clients: `N`.
      num_examples: `n`.
      empty_clients: how many clients own nothing.
      sizes: of the rows per client.
      labels_per_client: of the distinct labels per client, over clients that own something.
      label_counts: `[num_classes]`, how often each label occurs.
    """

    name: str
    num_clients: int
    num_examples: int
    empty_clients: int
    sizes: Spread
    labels_per_client: Spread
    label_counts: np.ndarray

    def __str__(self) -> str:
        counts = [f"{label}: {count:,}" for label, count in enumerate(self.label_counts)]
        if len(counts) > _MAX_CLASSES_SHOWN:
            counts = [f"{len(counts):,} labels", str(Spread.of(self.label_counts))]
        return "\n".join(
            [
                f"{self.name}: {self.num_examples:,} examples of {self.num_clients:,} clients, "
                f"{self.empty_clients:,} of them empty",
                f"examples per client: {self.sizes}",
                f"labels per client: {self.labels_per_client}",
                f"examples per label: {', '.join(counts)}",
            ]
        )
