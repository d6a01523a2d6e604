"""The claims of the paper against the runs of a home: what `gat-sweep claims` does."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.claims import CLAIMS, NOT_DECIDED, NOT_RUN, Claim, Finding
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.recipe import built_in
from gat_sweep.results.study import home_words, is_table, loaded_table, open_study
from gat_sweep.run.record import read_run
from gat_sweep.sweep import load_sweep, sweep_file
from gat_sweep.text import Say

COLUMNS = ("claim", "paper", "here", "verdict", "from", "to decide it")


def claims_command(
    sources: Sequence[str], home: Place, out: Path | None, usual: str, say: Say
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Judge every claim by the runs or tables given, or by all runs of the home; write claims.json and claims.md.

    A run is asked for the claims of the study that its sweep file is. A table, which does not name a study, is asked
    for all of them. usual: the recipe of commands where no source names one. say: gets a line for each source that is
    not asked. Return (a row for each claim and source, the files).
    Raises UserError for a source that does not exist or has an error.
    """
    asked = list(dict.fromkeys(sources)) or [run.name for run in children(home) if (run / "run.json").exists()]
    if not asked:
        raise UserError(f"{home} holds no runs; give --home, or tables")
    rows: list[dict[str, Any]] = []
    answered: set[str] = set()
    recipes: list[str] = []
    for source in asked:
        if is_table(source):
            study, table = None, loaded_table(Path(source), "value")
            recipe = built_in(table.trials[0].last.measured.reference)
        else:
            record = read_run(home, source)
            study, recipe = record["sweep"], record["recipe"]
            if not any(study in claim.studies for claim in CLAIMS):
                say(f"{source} is not asked: no claim is about sweep '{study}'")
                continue
            table = open_study(source, home, None).table
        recipes += [recipe] if recipe else []
        reasons: list[str] = []
        for claim in CLAIMS:
            if study is not None and study not in claim.studies:
                continue
            try:
                found = claim.rule(table)
            except ValueError as reason:
                reasons.append(str(reason).removeprefix(f"{table.path}: "))
                if study is None or study != claim.studies[0]:
                    continue
                found = Finding(reasons[-1], NOT_DECIDED)
            answered.add(claim.name)
            rows.append(_row(claim, source, found, recipe or usual, _more_seeds(source, found), home))
        if study is None and len(reasons) == len(CLAIMS):
            raise UserError(f"{source} answers no claim: {reasons[0]}")
    recipe = max(recipes, key=recipes.count, default=usual)
    for claim in CLAIMS:
        if claim.name not in answered:
            rows.append(_row(claim, None, Finding("", NOT_RUN), recipe, [], home))
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


def _row(
    claim: Claim, source: str | None, found: Finding, recipe: str, options: list[str] | None, home: Place
) -> dict[str, Any]:
    """options: of the command that decides the claim; None if there is none."""
    here, command, study = found.here, None, claim.studies[0]
    if options is not None:
        try:
            load_sweep(sweep_file(study), recipe)
            command = shlex.join(["gat-sweep", "run", study, "--recipe", recipe, *options, *home_words(home)])
        except UserError as reason:
            why = str(reason).partition(": ")[2]  # behind the place of the file, which differs between machines
            here = "; ".join(filter(None, (here, f"sweep {study} does not fit recipe {recipe}: {why}")))
    values = (claim.name, claim.paper, here, found.verdict, source, command)
    return dict(zip(COLUMNS, values, strict=True)) | {"seeds": found.seeds}


def _more_seeds(source: str, found: Finding) -> list[str] | None:
    """Options with which a claim that is not decided may be; None if more seeds are not what it needs."""
    if found.verdict != NOT_DECIDED or found.seeds is None:
        return None
    seeds = f"0-{found.seeds - 1}" if found.seeds > 1 else "0"
    return ["--seeds", seeds, *([] if is_table(source) else ["--name", source])]
