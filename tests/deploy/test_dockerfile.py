"""The image: no root at its end, all that it copies is there and may be seen, the pinned versions, one Python."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
FILE = (ROOT / "deploy" / "Dockerfile").read_text()
SEEN = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its words) of a Dockerfile, without comments, lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def copied(text: str) -> list[str]:
    return [source for name, words in instructions(text) if name == "COPY" for source in words.split()[:-1]]


def mistakes(text: str, seen: list[str]) -> list[str]:
    """What is wrong with a Dockerfile and the list of what it may see, one line each."""
    found = []
    users = [words for name, words in instructions(text) if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0") or not users[-1].isdigit():
        found.append("the user is not a number above 0: Kubernetes could not tell that it is not root")
    allowed = [line[1:] for line in seen if line.startswith("!")]
    for source in copied(text):
        if not (ROOT / source).exists():
            found.append(f"{source} is not there")
        if source not in allowed:
            found.append(f"{source} may not be seen")
    found += [f"{path} is seen for nothing" for path in allowed if path not in copied(text)]
    if "*" not in seen:
        found.append("all is seen")
    (base,) = [words for name, words in instructions(text) if name == "FROM"]
    if not re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base):
        found.append(f"{base} is not a Python of one version")
    return found


def test_the_dockerfile_is_sound() -> None:
    assert mistakes(FILE, SEEN) == []


@pytest.mark.parametrize(
    ("text", "seen", "line"),
    [
        (FILE.replace("USER 1000", ""), SEEN, "the user"),
        (FILE.replace("USER 1000", "USER root"), SEEN, "the user"),
        (FILE.replace("USER 1000", "USER sweep"), SEEN, "the user"),
        (FILE.replace("COPY sweeps sweeps", "COPY sweeps sweepz /"), SEEN, "sweepz is not there"),
        (FILE.replace("COPY sweeps sweeps", "COPY runs sweeps"), SEEN, "runs may not be seen"),
        (FILE, [*SEEN, "!.git"], ".git is seen for nothing"),
        (FILE, SEEN[2:], "all is seen"),
        (re.sub("FROM .*", "FROM python:latest", FILE), SEEN, "python:latest is no"),
    ],
)
def test_mistakes_are_found(text: str, seen: list[str], line: str) -> None:
    assert any(found.startswith(line) for found in mistakes(text, seen))


def test_the_image_has_what_the_tests_run() -> None:
    """The Python of the package; every pinned dependency; all parts of the wheel; a compiler for Triton."""
    (version,) = re.findall(r"^FROM python:(\S+?)-", FILE, re.MULTILINE)
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    install, project = [words for name, words in instructions(FILE) if name == "RUN" and "pip install" in words]
    found = re.fullmatch(r"python -c (\".*\") +> requirements.txt +&& (.*)", install)
    assert found
    listing, rest = found.groups()
    done = subprocess.run(
        [sys.executable, "-c", *shlex.split(listing)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == PROJECT["project"]["dependencies"]
    words = shlex.split(rest)
    assert " ".join(words) == "pip install --no-cache-dir -c constraints.txt -r requirements.txt boto3 psycopg2-binary"
    names = {re.split(r"[><=\[]", line)[0].lower() for line in [*done.stdout.splitlines(), *words[-2:]]}
    assert names <= {pin.lower() for pin in PINS}
    parts = [*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], "sweeps", PROJECT["project"]["readme"]]
    assert set(parts) | set(PROJECT["project"]["license-files"]) <= set(copied(FILE)) and "--no-deps" in project
    (system,) = [words for name, words in instructions(FILE) if name == "RUN" and "apt-get" in words]
    assert {"g++", "libc6-dev"} <= set(system.split()) and "--uid 1000" in system
