"""Numbers, times and names in words; progress in lines."""

import difflib
import time
from collections.abc import Callable, Iterable
from datetime import timedelta


def human(value: float) -> str:
    """1.23 k, M, G, T, P, E, Z."""
    for unit in ["", "k", "M", "G", "T", "P", "E"]:
        if abs(value) < 1000:
            return f"{value:.3g}{unit and ' ' + unit}"
        value /= 1000
    return f"{value:.3g} Z"


def short(value: float) -> str:
    """Three digits, or the whole part where it has more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """1:02:03, 2:03."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' for a mistyped name, or the list of what there is."""
    known = sorted(known)
    tail = [k for k in known if k.split(".")[-1] == word.split(".")[-1]]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or tail
    return f"did you mean '{close[0]}'?" if close else "there are: " + ", ".join(known)


Say = Callable[[str], None]


EVERY = 30.0  # seconds between two lines about the same pass


def silent(text: str) -> None:
    pass


class Eta:
    """Says how far a pass is and how long it still takes, now and then."""

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
