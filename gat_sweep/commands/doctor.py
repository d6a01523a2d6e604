"""doctor: what is missing before a sweep runs."""

import sys
from typing import TYPE_CHECKING

from rich.table import Table

from gat_sweep.commands.options import (
    address_option,
    command,
    console,
    home_option,
    json_option,
    make_sweep,
    print_json,
    sweep_options,
    tracking_option,
)

if TYPE_CHECKING:
    from gat_sweep.files.storage import Place
    from gat_sweep.launch.doctor import Finding


def findings_table(findings: "list[Finding]") -> Table:
    """Table of the checks and what they found."""
    table = Table(show_header=False)
    for finding in findings:
        table.add_row(finding.check, "ok" if finding.ok else "FIX", finding.found)
    return table


@command()
@sweep_options
@home_option
@address_option
@tracking_option
@json_option
def doctor(
    sweep: str,
    recipe: str,
    preset: str,
    settings: tuple[str, ...],
    seeds: str | None,
    home: "Place",
    address: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Check what a sweep needs, and name the fix of each fault.

    Checks storage, disk, data, weights, tracking, secrets and the cluster. Exit code 1 when anything is wrong.

    \b
    Example:
      gat-sweep doctor widths --recipe digits
    """
    from gat_sweep.launch.doctor import examine

    spec = make_sweep(sweep, recipe, preset, settings, seeds)
    findings = examine(spec, home, address, tracking_uri)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        console().print(findings_table(findings))
    sys.exit(int(any(not finding.ok for finding in findings)))
