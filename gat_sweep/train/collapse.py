"""Detection of a collapsed discriminator from the logged means. Training goes on, and its rows get a flag."""

import math
from dataclasses import dataclass

WINDOWS = 5  # log windows in a row; a single one may be chance
# Healthy trials on digits stay between 0.27 and 1.1. A D that cannot tell real from fake scores log 2.
WINS_BELOW = 0.02  # mean softplus(D(fake) - D(real)); below it margins exceed about 4 and G gets hardly any gradient
NEAR = 1e-3  # D says the same of everything: its loss is this near to log 2, and its mean logits to each other


@dataclass
class Collapse:
    """Number of log windows in a row that looked collapsed, and the flag once D counts as collapsed."""

    kind: str = ""
    windows: int = 0
    flag: str = ""  # set once, stays

    def look(self, step: int, means: dict[str, float]) -> str:
        """Takes in the means of a log window; returns a line to show when they complete a collapse, else ""."""
        loss, margin = means["adversarial_d"], means["logit_real"] - means["logit_fake"]
        kind = ""
        if loss < WINS_BELOW:
            kind = "D tells real from fake without effort"
        elif abs(loss - math.log(2)) < NEAR and abs(margin) < NEAR:
            kind = "D says the same of real and fake"
        self.windows = self.windows + 1 if kind and kind == self.kind else int(bool(kind))
        self.kind = kind
        if self.flag or self.windows < WINDOWS:
            return ""
        self.flag = f"discriminator collapsed by step {step}: {kind} (adversarial loss {loss:.2g}, {WINDOWS} logs)"
        return self.flag
