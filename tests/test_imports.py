"""Imports run one way."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gat_sweep.train.loop", ["ray", "mlflow"]),
        ("gat_sweep.encode.on_ray", ["ray", "torch", "timm", "diffusers"]),
        ("gat_sweep.encode.sources", ["torch"]),
        ("gat_sweep.cli", ["ray", "mlflow", "torch"]),
        ("gat_sweep.gat.losses", ["timm", "pydantic", "gat_sweep.config", "gat_sweep.train.loop"]),
        ("analysis.figures.law", ["ray", "mlflow", "torch", "gat_sweep"]),
    ],
)
def test_what_a_module_does_not_bring_along(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
