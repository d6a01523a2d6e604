"""Inspection of trained networks, block by block: features, ablations, alignment with a vision model (3.3, 3.4)."""
