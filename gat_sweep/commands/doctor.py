"""doctor: what is missing before a sweep runs."""

from rich.table import Table

from gat_sweep.launch.doctor import Finding


def findings_table(findings: list[Finding]) -> Table:
    table = Table(show_header=False)
    for finding in findings:
        table.add_row(finding.check, "well" if finding.ok else "FIX", finding.found)
    return table
