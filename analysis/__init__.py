"""From a run table to the scaling law and its figure; imports neither Ray nor the training code."""
