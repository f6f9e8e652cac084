"""Participation: the choice of each round's clients."""
