"""Measured time and memory of a step, a picture and a trial on this machine."""
