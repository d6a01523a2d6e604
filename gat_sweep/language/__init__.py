"""Frozen text encoders, from captions to the states that networks are given (A.9)."""
