"""The width-aware learning rate (paper section 2.4)."""


def adapted_learning_rate(base_rate: float, base_width: int, width: int) -> float:
    """Eq. 4: eta_adapt = eta_base * C_base / C_model, for each network from its own width."""
    return base_rate * base_width / width
