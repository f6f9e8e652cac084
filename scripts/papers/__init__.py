"""Reproduced papers: their workloads, their published numbers, and ours beside them."""
