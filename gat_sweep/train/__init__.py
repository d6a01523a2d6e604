"""Training one trial; imports neither Ray nor MLflow."""
