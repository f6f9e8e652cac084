"""Papers that have been reproduced: their workloads, their published numbers, ours beside them."""
