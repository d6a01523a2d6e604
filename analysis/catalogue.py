"""Analyses of a table, by the command that runs them; `report` runs them all.

A command's name says where its parts are: analysis/<command>.py has `analyse`, `summary` and `verdict`, and
analysis/figures/<command>.py has `plot`. This module imports none of them, because the command line
reads it for its help.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Analysis:
    """An analysis of a table: its title and its question in the report, and its line of help."""

    title: str
    question: str
    about: str


ANALYSES = {
    "allocate": Analysis(
        "Size and length",
        "Which size for how long has the least value at a training compute?",
        "Find the size and the length for a compute.",
    ),
    "correlate": Analysis(
        "Correlation with GFLOPs",
        "Does the metric correlate with the generator's GFLOPs?",
        "Correlate the metric with GFLOPs over sizes (Fig. 3c).",
    ),
    "split": Analysis(
        "Split between G and D",
        "How should compute be split between G and D?",
        "Find the best split of compute between G and D (Fig. 6a).",
    ),
    "rates": Analysis(
        "Learning rates",
        "How does the best learning rate fall with the width?",
        "Find the best learning rate by width (Fig. 5b, Table 4).",
    ),
    "compare": Analysis(
        "Arms compared",
        "Do the arms of the study differ?",
        "Compare the arms of a study, with intervals (Fig. 5a, 5c).",
    ),
}
