"""Has the discriminator collapsed? Read off the means that are logged; training goes on, its rows are flagged."""

import math
from dataclasses import dataclass

WINDOWS = 5  # log points in a row; one alone may be chance
# Healthy trials on digits stay between 0.27 and 1.1 (log 2 is what a D that cannot tell scores).
WINS_BELOW = 0.02  # mean softplus(D(fake) - D(real)): margins of 4 and more, and hardly a gradient left for G
NEAR = 1e-3  # of log 2, with logits as near to each other: D says the same of everything


@dataclass
class Collapse:
    """How long it has looked collapsed, and since when it counts as such."""

    kind: str = ""
    windows: int = 0
    flag: str = ""  # set once, stays

    def look(self, step: int, means: dict[str, float]) -> str:
        """Takes in the means of a log window; a line to show when they complete a collapse, else ""."""
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
