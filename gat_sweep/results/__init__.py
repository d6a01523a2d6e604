"""A run's table through analysis/, into the run and MLflow."""
