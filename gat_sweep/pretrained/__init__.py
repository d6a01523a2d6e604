"""Trained networks in folders: writing, reading, sampling, evaluation, and the authors' format."""

from gat_sweep.pretrained.folder import from_pretrained, from_trial, save_pretrained

__all__ = ["from_pretrained", "from_trial", "save_pretrained"]
