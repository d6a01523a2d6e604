"""Whoever watches a run: reads its files, never the training."""
