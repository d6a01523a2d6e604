"""The files of a run, a module for each."""
