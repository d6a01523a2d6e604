"""The number of workers that an elastic trial is asked to go on with: <trial>/workers.json."""

import json

from gat_sweep.files.jsonfile import read_json
from gat_sweep.files.storage import Place, write
from gat_sweep.run.trial import Trial

FILE = "workers.json"


def ask_workers(trial: Place, count: int) -> None:
    """Asks a trial to go on with `count` workers; one that trains saves and ends for it."""
    write(trial / FILE, json.dumps({"count": count}).encode())


def asked_workers(trial: Trial) -> int:
    """The number of workers of a trial's next attempt; of an elastic one, the number that was asked for last."""
    workers = trial.config.workers
    if not workers.elastic:
        return workers.least

    def checked(value: dict[str, int]) -> int:
        return min(max(int(value["count"]), workers.least), workers.most)

    try:
        return read_json(trial.folder / FILE, checked, "remove it")
    except FileNotFoundError:
        return workers.least


def resize_reason(trial: Trial, world: int) -> str:
    """Why an elastic trial on `world` workers should save and begin anew; "" if it need not."""
    if not (trial.config.workers.elastic and (trial.folder / FILE).exists()):
        return ""
    asked = asked_workers(trial)
    return f"goes on with {asked} workers instead of {world}" if asked != world else ""
