"""The width-aware learning rate (paper section 2.4), and optional rules for depth and batch (A.12)."""

from typing import Literal

DepthRule = Literal["none", "sqrt"]
BatchRule = Literal["none", "sqrt", "linear"]


def adapted_learning_rate(base_rate: float, base_width: int, width: int) -> float:
    """Learning rate eta_adapt = eta_base * C_base / C_model, for each network from its own width (Eq. 4)."""
    return base_rate * base_width / width


def depth_factor(rule: DepthRule, base_depth: int, depth: int) -> float:
    """Factor of the rate for the network's depth L; "sqrt": 1 / sqrt(L), relative to the base depth (A.12)."""
    return {"none": 1.0, "sqrt": (base_depth / depth) ** 0.5}[rule]


def batch_factor(rule: BatchRule, base_batch: int, batch: int) -> float:
    """Factor of the rate for the batch B; "linear": B, "sqrt": sqrt(B), relative to the base batch (A.12)."""
    return {"none": 1.0, "sqrt": (batch / base_batch) ** 0.5, "linear": batch / base_batch}[rule]
