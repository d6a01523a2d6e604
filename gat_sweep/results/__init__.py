"""Commands that analyse a run's table and put the results into the run and MLflow."""
