"""What the blocks of trained networks do: features, ablations, alignment with a vision model (section 3.3, 3.4)."""
