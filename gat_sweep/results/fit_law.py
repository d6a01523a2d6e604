"""What `gat-sweep fit-law` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.table import Table
from gat_sweep.files.storage import Place
from gat_sweep.results import paper
from gat_sweep.results.study import Source, _loaded, analyse, log_to_mlflow, open_source


@dataclass(frozen=True)
class _LawReport:
    """A law with every check of it."""

    law: Any
    more: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.law.to_json() | self.more


def fit_law_command(
    source: str | None, metric: str, home: Place, out: Path | None, floor: float | None
) -> tuple[dict[str, Any], str, list[Path]]:
    """Fits, checks and draws a law, and scores the run's predictions; (its JSON, a summary to print, the files).

    source: as of open_source, or None for the paper's own points.
    Raises UserError when there is nothing to fit, or the table is at fault.
    """
    from analysis.law import fit_law
    from analysis.law_figure import plot_law
    from analysis.scrutiny import scrutinise
    from gat_sweep.results.predict import scored

    if source is None:
        folder = out or Path("law-paper")
        folder.mkdir(parents=True, exist_ok=True)
        paper.write_table(folder / "table3.csv", paper.FORWARDS)
        opened = Source(_loaded(folder / "table3.csv", metric), folder, None)
    else:
        opened = open_source(source, home, out, metric)

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
    return report, law_summary(report) + (f"\n{warning}" if warning else ""), files


def law_summary(report: dict[str, Any]) -> str:
    """The law in words, for a terminal."""
    metric = report["metric"]
    lines = [
        f"{metric} = {report['a']:.4g} C^-{report['b']:.4f}, C in {report['unit']}",
        f"b = {report['b']:.4f}, 95 % interval {_interval(report)} (Student t, {report['n']} sizes)",
        f"Pearson({metric}, G-forward GFLOPs) = {report['pearson_gflops']:.3f}"
        if report["pearson_gflops"] is not None
        else f"Pearson({metric}, G-forward GFLOPs) is undefined",
        f"floor: {report['floor']['verdict']}",
    ]
    if fitted := report["floor"]["with_floor"]:
        lines.append(
            f"  with a floor: E = {fitted['floor']:.4g}, b = {fitted['b']:.4f} {_interval(fitted)}, "
            f"{fitted['starts_agreeing']} of {len(fitted['starts'])} starts agree"
        )
    lines += [
        f"  floor pinned at {row['floor']:.4g}: b = {row['b']:.4f} {_interval(row)}"
        for row in report["floor"].get("pinned", [])
    ]
    if report["leave_one_size_out"]:
        largest = report["leave_one_size_out"][-1]
        lines.append(
            f"largest size from the others: {largest['size']} {largest['value']:.4g}, predicted "
            f"{largest['predicted']:.4g} {_interval(largest)}, {'inside' if largest['inside'] else 'OUTSIDE'}"
        )
    lines += [_prediction_line(row) for row in report.get("predictions", [])]
    without = [row["b"] for row in report["without_run"] if row["b"] is not None]
    if without:
        lines.append(f"leaving out each run: b from {min(without):.4f} to {max(without):.4f}")
    if clustered := report["checkpoints"]:
        lines.append(
            f"through all {clustered['checkpoints']} checkpoints of {clustered['runs']} runs: b = {clustered['b']:.4f} "
            f"{_interval(clustered)} (clustered by run)"
        )
    lines += [f"b = {row['b']:.4f} {_interval(row)} with C of {row['counted']}" for row in report["itemisations"]]
    lines += [f"b = {b:.4f} with C counted as {how}" for how, b in report.get("counts", {}).items()]
    lines += [f"left out: {e['trial']}: {e['reason']}" for e in report["excluded"]]
    lines += [f"flagged: {e['trial']} ({e['size']}): {e['flags']}" for e in report["flagged"]]
    if "remark" in report:
        lines.append(report["remark"])
    return "\n".join(lines)


def _interval(row: dict[str, Any]) -> str:
    low, high = (row.get(key, row.get(f"b_{key}")) for key in ("low", "high"))
    return f"[{'-inf' if low is None else f'{low:.4g}'}, {'inf' if high is None else f'{high:.4g}'}]"


def _prediction_line(row: dict[str, Any]) -> str:
    said = f"prediction of {row['size']} written {row['written']}: {row['predicted']:.4g} {_interval(row)}"
    if not row["intact"]:
        return f"{said}: ALTERED since, its digest does not fit; not scored"
    if row["value"] is None:
        return f"{said}: {row['size']} is not complete yet"
    when = "before" if row["before"] else "AFTER"
    where = "inside" if row["inside"] else "outside"
    lines = f"{said}: {where}, it is {row['value']:.4g}; written {when} its first step"
    if row["inside_seeds"] is not None:
        held = "inside" if row["inside_seeds"] else "outside"
        lines += (
            f"; {held} [{row['seeds_low']:.4g}, {row['seeds_high']:.4g}], where only seeds would stray from the law"
        )
    return lines
