"""Fit of the scaling law: what `gat-sweep fit-law` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.law import Laws, fit_laws
from analysis.law_text import summary
from analysis.scrutiny import scrutinise
from analysis.table import Table, strict_json
from gat_sweep.files.storage import Place
from gat_sweep.results import paper
from gat_sweep.results.study import Study, analyse, loaded_table, log_to_mlflow, open_study


@dataclass(frozen=True)
class _LawReport:
    """The laws of a table with all their checks."""

    laws: Laws
    checks: tuple[dict[str, Any], ...]  # of each law
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        laws = [law.to_json() | checks for law, checks in zip(self.laws.laws, self.checks, strict=True)]
        return strict_json(self.laws.head() | {"laws": laws} | self.more)


def fit_law_command(
    source: str | None,
    metric: str,
    home: Place,
    out: Path | None,
    floor: float | None,
    verbose: bool,
    raced: bool = False,
) -> tuple[dict[str, Any], str, list[Path]]:
    """Fit, check and draw the laws, and score the run's predictions; return (the JSON, a summary to print, the files).

    source: as for open_study; None is the paper's own points. floor: that of the law, if it is known. verbose: of the
    summary. raced: fit the survivors of a race.
    Raises UserError if there is nothing to fit, or the table has an error.
    """
    from analysis.figures.law import plot_laws
    from gat_sweep.results.predict import scored

    if source is None:
        folder = out or Path("law-paper")
        folder.mkdir(parents=True, exist_ok=True)
        paper.write_table(folder / "table3.csv", paper.FORWARDS)
        opened = Study(loaded_table(folder / "table3.csv", metric), folder, None)
    else:
        opened = open_study(source, home, out, metric)

    def scrutinised(table: Table) -> _LawReport:
        laws = fit_laws(table, floor, raced)
        more = paper.remarks(table) if source is None else {}
        if opened.run is not None and metric == "value":
            more["predictions"] = scored(opened.run, laws)
        return _LawReport(laws, tuple(scrutinise(table, law) for law in laws.laws), more)

    def plotted(found: _LawReport, path: Path) -> list[Path]:
        predictions = [row for row in found.more.get("predictions", []) if row["intact"]]
        return plot_laws(opened.table, found.laws, path, predictions)

    report, files = analyse(opened, "law", scrutinised, plotted)
    warning = log_to_mlflow(opened, files)
    return report, summary(report, verbose) + (f"\n{warning}" if warning else ""), files
