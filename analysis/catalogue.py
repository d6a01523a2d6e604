"""The analyses that are a function of a table, by the command that runs them; `report` runs them all.

The command's name says where each part lies: analysis/<command>.py has `analyse` and `summary`, and
analysis/figures/<command>.py, where there is one, has `plot`. Imports none of them: the command line reads this for its
help.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Analysis:
    """A function of a table, whose result has `to_json`; the summary of its module puts that in words."""

    title: str
    about: str
    drawn: bool = True


ANALYSES = {
    "correlate": Analysis(
        "Correlation with GFLOPs",
        "Correlate the metric with GFLOPs over sizes (Fig. 3c).",
    ),
    "split": Analysis(
        "Split between G and D",
        "Find the best split of compute between G and D (Fig. 6a).",
    ),
    "rates": Analysis(
        "Learning rates",
        "Find the best learning rate by width (Fig. 5b, Table 4).",
    ),
    "compare": Analysis(
        "Arms compared",
        "Compare the arms of a study, seed by seed (Fig. 5a, 5c).",
    ),
    "advise": Analysis(
        "Next cell",
        "Find the next trials that narrow the law most per GFLOP.",
        drawn=False,
    ),
}
