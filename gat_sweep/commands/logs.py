"""logs: the journals of a run's trials."""

from datetime import datetime
from typing import Any


def log_line(record: dict[str, Any]) -> str:
    """A record for people."""
    moment = datetime.fromtimestamp(record["time"]).isoformat(" ", "seconds")
    if "metrics" in record:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
    else:
        shown = record.get("note") or f"{record['status']} {record.get('reason', '')}".strip()
    return f"{moment}  {record['trial']}  step {record['step']}  {shown}"
