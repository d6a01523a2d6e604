"""The self-test: what it measures, and that it fails an interval that is too narrow or too wide."""

from collections.abc import Iterator

import numpy as np
import pytest

from analysis.selftest import case, run
from analysis.selftest.case import Case, Held
from gat_sweep.commands.fit_law import selftest_table


def normal(factor: float) -> Case:
    """The mean of one normal number, with an interval that is so many times as wide as it should be."""
    return Case("mean", f"times {factor:g}", lambda random: Held(bool(abs(random.normal()) <= 1.96 * factor)))


def test_coverage_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> Iterator[Case]:
        yield from map(normal, (1.0, 0.8, 1.4))

    monkeypatch.setattr(run, "CASES", (cases,))
    said: list[str] = []
    rows = run.run_selftest(said.append)
    assert [row["passes"] for row in rows] == [True, False, False]
    assert len(said) == 3 and said[0].startswith("mean, times 1: 9")
    assert [row["coverage"] for row in rows] == pytest.approx([0.95, 0.883, 0.994], abs=0.02)
    assert selftest_table(rows).row_count == 3


@pytest.mark.parametrize("cases", run.CASES)
def test_every_case_draws(cases: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few draws of each; the command itself takes minutes."""
    assert callable(cases)
    for one in cases():
        random = np.random.default_rng(1)
        held = [one.draw(random) for _ in range(6)]
        assert sum(draw.truth for draw in held) >= 3, one


def test_violations_are_planted() -> None:
    planted = {one.planted for cases in run.CASES for one in cases()}
    assert case.DRAWS >= 1000
    for word in ("floor", "size effects", "grows", "heavy tails", "unequal seeds", "break"):
        assert any(word in one for one in planted), word
