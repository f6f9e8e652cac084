"""Federations in files."""
