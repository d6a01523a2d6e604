"""The record of a race, race.json: groups, looks and decisions, and the dropped trials that were retried."""

import json

from analysis.race import Race, read_race
from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, write

FILE = "race.json"
LOST = "remove it; the trials go on without a race, and with --race another one begins"


def write_race(run: Place, race: Race) -> None:
    write(run / FILE, json.dumps(race.to_json(), indent=1).encode())


def read_run_race(run: Place) -> Race | None:
    """The race of a run; None if it has none. Raises UserError when its file is damaged."""
    return read_json(run / FILE, read_race, LOST) if (run / FILE).exists() else None
