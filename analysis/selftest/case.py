"""One check of the self-test: an interval, the draws that it is measured on, and what is planted in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

DRAWS = 2000  # a standard error of 0.5 % at 95 %
SLOW_DRAWS = 400  # for a fit without closed form; a standard error of 1.1 %


class Held(NamedTuple):
    """Whether an interval holds the truth of one draw, and whether it has both ends."""

    truth: bool
    bounded: bool = True


@dataclass(frozen=True)
class Case:
    """An interval that a command headlines, under planted conditions."""

    interval: str  # which one, such as `exponent, 4 sizes`
    planted: str  # what the draws deviate in from the method's assumptions; empty if in nothing
    draw: Callable[[np.random.Generator], Held]
    slow: bool = False
