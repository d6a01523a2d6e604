"""Scaling-law sweeps of a transformer GAN."""
