"""Views of a run from its files, without any contact to the training."""
