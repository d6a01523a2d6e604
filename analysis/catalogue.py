"""The analyses that are a function of a table and nothing more, by the command that runs them; `report` asks them all.

Imports none of them: the command line reads this for its help.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Analysis:
    """A function of a table in analysis/, whose result has `to_json`; the summary of its module puts that in words."""

    title: str
    about: str
    module: str  # the name of its files, too
    function: str
    figure: str  # module and function, or nothing


ANALYSES = {
    "correlate": Analysis(
        "Correlation with GFLOPs",
        "Correlate the metric with GFLOPs and their logarithm over sizes (Fig. 3c).",
        "correlation",
        "correlate",
        "correlation.plot_correlations",
    ),
    "split": Analysis(
        "Split between G and D",
        "Fit the metric to the compute of G and of D, and say which split is best (Fig. 6a).",
        "surface",
        "fit_surface",
        "surface_figure.plot_surface",
    ),
    "rates": Analysis(
        "Learning rates",
        "Find the best learning rate at each width, and how it falls with the width (Fig. 5b, Table 4).",
        "rates",
        "fit_rates",
        "rates_figure.plot_rates",
    ),
    "compare": Analysis(
        "Arms compared",
        "Compare what a study varies, seed by seed: means, spreads, differences, curves (Fig. 5a, 5c, A.17).",
        "ablation",
        "compare",
        "ablation_figure.plot_ablation",
    ),
    "advise": Analysis(
        "Next cell",
        "Say which next cell narrows the interval of the largest size most per GFLOP.",
        "advisor",
        "advise",
        "",
    ),
}
