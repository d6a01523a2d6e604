"""The commands: `gat-sweep X` is X.py, with its options, its one call and its table; work is imported when called."""
