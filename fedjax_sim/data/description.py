"""Summary counts of a federation."""

import dataclasses

import numpy as np

_MAX_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Spread:
    """Minimum, median, mean and maximum of some counts."""

    min: int
    median: float
    mean: float
    max: int

    @classmethod
    def of(cls, counts: np.ndarray) -> "Spread":
        """Returns the spread of `counts` `[m]`, m at least 1."""
        return cls(int(counts.min()), float(np.median(counts)), float(counts.mean()), int(counts.max()))

    def __str__(self) -> str:
        return f"min {self.min:,}, median {self.median:,g}, mean {self.mean:,.1f}, max {self.max:,}"


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Counts of a federation; `str` formats them for reading.

    Attributes:
      name: name of the data set.
      num_clients: number of clients, `N`.
      num_examples: number of examples, `n`.
      empty_clients: number of clients without examples.
      sizes: spread of examples per client.
      labels_per_client: spread of distinct labels per client, over clients with examples.
      label_counts: occurrences of each label, `[num_classes]`.
      label_names: name of each label, or None.
    """

    name: str
    num_clients: int
    num_examples: int
    empty_clients: int
    sizes: Spread
    labels_per_client: Spread
    label_counts: np.ndarray
    label_names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        labels = self.label_names or range(len(self.label_counts))
        counts = [f"{label}: {count:,}" for label, count in zip(labels, self.label_counts, strict=True)]
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
