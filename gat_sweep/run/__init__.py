"""The files of a run: one module per file."""
