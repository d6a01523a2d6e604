"""Fit of the scaling law: what `gat-sweep fit-law` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.table import Table
from gat_sweep.files.storage import Place
from gat_sweep.results import paper
from gat_sweep.results.study import Study, analyse, loaded_table, log_to_mlflow, open_study


@dataclass(frozen=True)
class _LawReport:
    """A law with all its checks."""

    law: Any
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.law.to_json() | self.more


def fit_law_command(
    source: str | None, metric: str, home: Place, out: Path | None, floor: float | None
) -> tuple[dict[str, Any], str, list[Path]]:
    """Fit, check and draw a law, and score the run's predictions; return (its JSON, a summary to print, the files).

    source: as for open_study; None is the paper's own points. floor: that of the law, if it is known.
    Raises UserError if there is nothing to fit, or the table has an error.
    """
    from analysis.figures.law import plot_law
    from analysis.law import fit_law
    from analysis.scrutiny import scrutinise, summary
    from gat_sweep.results.predict import scored

    if source is None:
        folder = out or Path("law-paper")
        folder.mkdir(parents=True, exist_ok=True)
        paper.write_table(folder / "table3.csv", paper.FORWARDS)
        opened = Study(loaded_table(folder / "table3.csv", metric), folder, None)
    else:
        opened = open_study(source, home, out, metric)

    def scrutinised(table: Table) -> _LawReport:
        law = fit_law(table)
        more = scrutinise(table, law, floor)
        if source is None:
            more |= paper.remarks(table)
        if opened.run is not None and metric == "value":
            more["predictions"] = scored(opened.run, law)
        return _LawReport(law, more)

    def plotted(found: _LawReport, path: Path) -> list[Path]:
        predictions = [row for row in found.more.get("predictions", []) if row["intact"]]
        return plot_law(opened.table, found.law, path, predictions)

    report, files = analyse(opened, "law", scrutinised, plotted)
    warning = log_to_mlflow(opened, files)
    return report, summary(report) + (f"\n{warning}" if warning else ""), files
