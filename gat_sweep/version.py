"""The commit of the running source."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def source_commit() -> str:
    """Commit of the running source, with "+dirty" if it was edited since, or the version of an installed package."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode == 0:
            head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
            status = ["status", "--porcelain", "--untracked-files=no", str(here)]
            edited = subprocess.run([*git, *status], capture_output=True, text=True)
            return head.stdout.strip() + ("+dirty" if edited.stdout.strip() else "")
    except FileNotFoundError:
        pass  # without git, the version of the installed package is enough
    return f"v{version('gat-sweep')}"
