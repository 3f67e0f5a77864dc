"""Fits the simulator to recordings of a live system, with confidence intervals."""
