"""Text of numbers, times and names, and lines of progress."""

import difflib
import time
from collections.abc import Callable, Iterable
from datetime import timedelta


def human(value: float) -> str:
    """A number with three digits and a unit prefix (k, M, G, T, P, E, Z), such as 1.23 k."""
    for unit in ["", "k", "M", "G", "T", "P", "E"]:
        if abs(value) < 1000:
            return f"{value:.3g}{unit and ' ' + unit}"
        value /= 1000
    return f"{value:.3g} Z"


def short(value: float) -> str:
    """A number with three digits, or its whole part if that has more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """A time such as 1:02:03 or 2:03; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Hint for an unknown name: "did you mean 'NAME'?", or the list of known names."""
    known = sorted(known)
    tail = [k for k in known if k.split(".")[-1] == word.split(".")[-1]]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or tail
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)


Say = Callable[[str], None]


EVERY = 30.0  # seconds between two lines about the same task


def silent(text: str) -> None:
    """Says nothing."""


class Eta:
    """Prints the progress of a long task and the time left, every EVERY seconds."""

    def __init__(self, say: Say, what: str, total: int):
        self.say, self.what, self.total, self.done = say, what, total, 0
        self.began = self.said = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= EVERY and self.done < self.total:
            self.said = now
            left = timedelta(seconds=round((now - self.began) * (self.total / self.done - 1)))
            self.say(f"{self.what}: {self.done:,} of {self.total:,}, {left} left")
