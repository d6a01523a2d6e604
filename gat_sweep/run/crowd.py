"""Who works and who waits for machines, as the launch of a run saw it last: crowd.json."""

import time

from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place

FILE = "crowd.json"
FRESH = 30.0  # seconds; an older line is of a launch that has ended


def crowd_line(run: Place) -> str:
    """The line of a launch that is under way on a cluster; "" if there is none."""
    try:
        age, line = read_json(run / FILE, lambda d: (time.time() - d["time"], str(d["line"])), "remove it")
    except FileNotFoundError:
        return ""
    return line if age < FRESH else ""
