"""Federations stored in files."""
