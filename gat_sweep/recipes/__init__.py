"""The numbers of each data set and scale, one YAML a recipe."""
