"""The width-aware learning rate (paper section 2.4), and rules for depth and batch that may stand beside it (A.12)."""

from typing import Literal

DepthRule = Literal["none", "sqrt"]
BatchRule = Literal["none", "sqrt", "linear"]


def adapted_learning_rate(base_rate: float, base_width: int, width: int) -> float:
    """Eq. 4: eta_adapt = eta_base * C_base / C_model, for each network from its own width."""
    return base_rate * base_width / width


def depth_factor(rule: DepthRule, base_depth: int, depth: int) -> float:
    """What a rate is multiplied with for its network's depth; "sqrt": with 1 / sqrt(L), 1 at the base depth (A.12)."""
    return {"none": 1.0, "sqrt": (base_depth / depth) ** 0.5}[rule]


def batch_factor(rule: BatchRule, base_batch: int, batch: int) -> float:
    """The same for the images of a step; "linear": with B, "sqrt": with sqrt(B) (A.12)."""
    return {"none": 1.0, "sqrt": (batch / base_batch) ** 0.5, "linear": batch / base_batch}[rule]
