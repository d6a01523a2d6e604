"""Many trials: what has to be there before a launch, and Ray, which runs them."""
