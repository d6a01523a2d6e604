"""The claims of the paper against the runs of a home: what `gat-sweep claims` does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.claims import CLAIMS, NOT_DECIDED, NOT_RUN, Claim, Finding
from gat_sweep.files.storage import Place, children, write
from gat_sweep.results.study import loaded_table, open_study
from gat_sweep.run.record import read_run

DEFAULT_RECIPE = "imagenet256"
COLUMNS = ("claim", "paper", "here", "verdict", "from", "to decide it")


def claims_command(sources: Sequence[str], home: Place, out: Path | None) -> tuple[list[dict[str, Any]], list[Path]]:
    """Judge every claim by the runs or tables given, or by all runs of the home; write claims.json and claims.md.

    A run is asked for the claims of the study that its sweep file is. A table, which does not name a study, is asked
    for all of them. Return (a row for each claim and source, the files).
    Raises UserError for a source that does not exist or has an error.
    """
    asked = list(sources) or [run.name for run in children(home) if (run / "run.json").exists()]
    rows: list[dict[str, Any]] = []
    answered: set[str] = set()
    recipes: list[str] = []
    for source in asked:
        if source.endswith((".csv", ".parquet")):
            study, recipe, table = None, None, loaded_table(Path(source), "value")
        else:
            record = read_run(home, source)
            study, recipe = record["sweep"], record["recipe"]
            recipes.append(recipe)
            if not any(study in claim.studies for claim in CLAIMS):
                continue
            table = open_study(source, home, None).table
        for claim in CLAIMS:
            if study is not None and study not in claim.studies:
                continue
            try:
                found = claim.rule(table)
            except ValueError as reason:
                if study is None or study != claim.studies[0]:
                    continue
                found = Finding(str(reason).removeprefix(f"{table.path}: "), NOT_DECIDED)
            answered.add(claim.name)
            rows.append(_row(claim, source, found, _command(claim, source, recipe, found)))
    recipe = max(set(recipes), key=recipes.count) if recipes else DEFAULT_RECIPE
    for claim in CLAIMS:
        if claim.name not in answered:
            command = f"gat-sweep run {claim.studies[0]} --recipe {recipe}"
            rows.append(_row(claim, None, Finding("", NOT_RUN), command))
    names = [claim.name for claim in CLAIMS]
    rows.sort(key=lambda row: names.index(row["claim"]))
    folder = out or Path("claims")
    write(folder / "claims.json", json.dumps(rows, indent=1, allow_nan=False).encode())
    write(folder / "claims.md", markdown(rows).encode())
    return rows, [folder / "claims.json", folder / "claims.md"]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table for a document."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [str(row[name] or "").replace("|", "\\|") for name in COLUMNS]
        lines.append("| " + " | ".join([*cells[:-1], f"`{cells[-1]}`" if cells[-1] else ""]) + " |")
    return "\n".join(lines) + "\n"


def _row(claim: Claim, source: str | None, found: Finding, command: str | None) -> dict[str, Any]:
    values = (claim.name, claim.paper, found.here, found.verdict, source and Path(source).name, command)
    return dict(zip(COLUMNS, values, strict=True)) | {"seeds": found.seeds}


def _command(claim: Claim, source: str, recipe: str | None, found: Finding) -> str | None:
    """What to run so that a claim that is not decided may be; None if more seeds are not what it needs."""
    if found.verdict != NOT_DECIDED or found.seeds is None:
        return None
    seeds = ",".join(map(str, range(found.seeds)))
    command = f"gat-sweep run {claim.studies[0]} --recipe {recipe or DEFAULT_RECIPE} --seeds {seeds}"
    return command if recipe is None else f"{command} --name {source}"
