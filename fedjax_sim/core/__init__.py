"""Types and helpers that every subpackage may import."""
