"""Launch of many trials: the checks before it, and Ray, which runs them."""
