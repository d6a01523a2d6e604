"""Runs the slow tests of the rooms that the commits of the last hours touched: `make test-changed`.

A commit that touches many rooms is what `make test-slow` is for: then this runs none, and says so.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOURS = 4
MOST = 3  # rooms; their slow tests take minutes each


def changed_files() -> list[str]:
    """Files that differ between now and the last commit that is older than HOURS, by name."""

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.split()

    before = git("rev-list", "-1", f"--before={HOURS} hours ago", "HEAD") or git("rev-list", "--max-parents=0", "HEAD")
    return git("diff", "--name-only", before[-1])


def rooms(files: list[str]) -> set[str]:
    """The folders of tests/ that mirror the folders of the changed files."""
    found = set()
    for file in files:
        top, _, rest = file.partition("/")
        room = rest.partition("/")[0] if top in ("gat_sweep", "tests") else top
        if (ROOT / "tests" / room).is_dir() and room not in ("", "helpers"):
            found.add(room)
    return found


def main() -> int:
    touched = sorted(rooms(changed_files()))
    if not touched or len(touched) > MOST:
        print(f"{len(touched)} rooms changed ({', '.join(touched)}): their slow tests are left to `make test-slow`")
        return 0
    folders = [str(ROOT / "tests" / room) for room in touched]
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "slow", *folders]
    code = subprocess.run(command, cwd=ROOT).returncode
    return 0 if code == 5 else code  # 5: none of these rooms has a slow test


if __name__ == "__main__":
    sys.exit(main())
