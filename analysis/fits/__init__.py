"""Fits of arrays, with intervals: they know neither tables nor trials."""
