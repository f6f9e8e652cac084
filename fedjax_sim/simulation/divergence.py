"""Divergence of training: its error, and the likely cause."""

from collections.abc import Mapping


class DivergenceError(ArithmeticError):
    """Divergence of training: a parameter or a loss is not finite.

    Attributes:
      round: round in which training diverged.
    """

    def __init__(self, message: str, round: int):
        super().__init__(message)
        self.round = round


def divergence(round: int, hparams: Mapping[str, float], saved: int | None) -> DivergenceError:
    """Returns the error that says where training diverged, and the likely cause."""
    if round == 0:
        return DivergenceError(
            "a loss is not a finite number before any training; check that all labels are classes of "
            "the model and that no feature is too large for it",
            round,
        )
    rates = ", ".join(f"{name}={value:g}" for name, value in hparams.items())
    kept = "" if saved is None else f" The checkpoint of round {saved} is kept."
    return DivergenceError(
        f"training diverged in round {round}: a parameter or a loss is not a finite number "
        f"({rates}). The learning rate is probably too high: try a third of "
        f"it.{kept}",
        round,
    )
