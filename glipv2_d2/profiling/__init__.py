"""Profiling: the cost of each stage of a model, and its lower bound on a machine."""
