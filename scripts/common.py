"""What the scripts share: reading lists of numbers from flags."""


def numbers(flag: str, entries: list[str], kind: type) -> list:
    """The entries of a list flag as numbers.

    Raises:
      ValueError: there are none, or one is not a number.
    """
    entries = [entry.strip() for entry in entries if entry.strip()]
    if not entries:
        raise ValueError(f"--{flag} is empty; wanted numbers with commas between them")
    parsed = []
    for entry in entries:
        try:
            parsed.append(kind(entry))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise ValueError(f"--{flag} holds {entry!r}; wanted {wanted} with commas between") from None
    return parsed
