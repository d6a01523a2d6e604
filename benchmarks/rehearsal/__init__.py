"""Weeks of a sweep on a simulated cluster, with faults: `python -m benchmarks.rehearsal`.

Real: the command `run`, its queue, crowd, lease, caps, monitor and journals, the training loop, checkpoints and
tables, an MLflow server, the command `status`. Simulated: Ray, the machines, the networks and their evaluation
(stand_ins.py, cluster.py).
"""
