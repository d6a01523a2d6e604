"""The command `gat-sweep`: makes sure that `analysis` is ours, then hands over to the command line."""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Entry point. Ends with one line when another package of the name `analysis` comes first on the path."""
    ours = Path(__file__).resolve().parents[1] / "analysis"
    found = importlib.util.find_spec("analysis")
    origins = [] if found is None else [Path(place).resolve() for place in found.submodule_search_locations or ()]
    if ours not in origins:
        other = found.origin or ", ".join(map(str, origins)) if found else "nowhere"
        text = f"'analysis' is {other}, not gat-sweep's; take its folder off PYTHONPATH, or rename it"
        print(f"gat-sweep: {text}", file=sys.stderr)
        sys.exit(2)
    from gat_sweep import cli  # imports from analysis

    cli.main()
