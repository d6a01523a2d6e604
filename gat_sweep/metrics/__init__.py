"""Distances between sets of pictures; every number is stored with its protocol."""
