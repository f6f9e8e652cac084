"""Command-line flags by topic."""
