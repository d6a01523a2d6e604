"""The documents name what exists: links, commands, options, config keys, rooms; the config reference is up to date."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gat_sweep.cli import cli
from gat_sweep.recipe import check_key, recipe_names
from gat_sweep.sweep import sweep_file

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# The lab log tells what was done at its time, with the commands of that time.
CURRENT = [path for path in DOCUMENTS if path.name not in ("log.md", "CHANGELOG.md")]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"gat-sweep ([^'`\n]+)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def headings(text: str) -> set[str]:
    """The anchors that a document's headings make."""
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    found = []
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / file) if file else path
        if not there.exists() or (anchor and anchor not in headings(there.read_text(encoding="utf-8"))):
            found.append(target)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_and_pictures_exist(path: Path) -> None:
    assert broken_links(path) == []


def code(text: str) -> Iterator[str]:
    """The lines of fenced blocks, joined where one ends with a backslash, and the code inside sentences."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for language, block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            if language != "console" or line.startswith("$ "):
                yield line.partition(" # ")[0]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`]+)`", prose)


class Call(NamedTuple):
    """A call of gat-sweep in a document."""

    command: str
    words: list[str]

    @property
    def options(self) -> list[str]:
        return [word.partition("=")[0] for word in self.words if re.match(r"--?[a-z]", word)]

    def values(self, option: str) -> list[str]:
        return [after for word, after in zip(self.words, self.words[1:], strict=False) if word == option]


def calls(path: Path) -> Iterator[Call]:
    for line in code(path.read_text(encoding="utf-8")):
        for match in COMMAND.findall(line):
            words = shlex.split(match.partition(" |")[0])
            if words and not words[0].startswith("-") and not words[0].isupper():  # COMMAND stands for any
                yield Call(words[0], words[1:])


def mistakes(call: Call) -> list[str]:
    """What a call names that does not exist."""
    command = cli.commands.get(call.command)
    if command is None:
        return [f"no command {call.command}"]
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    found = [f"{call.command} has no {option}" for option in call.options if option not in known | {"-h", "--help"}]
    found += [f"no recipe {recipe}" for recipe in call.values("--recipe") if recipe not in recipe_names()]
    for setting in call.values("--set"):
        key = setting.partition("=")[0]
        try:
            if key != "KEY":
                check_key(key)
        except ValueError as error:
            found.append(str(error))
    if call.command in ("plan", "run", "doctor") and call.words and not call.words[0].startswith("-"):
        sweep = call.words[0].removeprefix("gat-sweep/")  # on a cluster's head this repository lies in the home folder
        try:
            sweep_file(str(ROOT / sweep) if (ROOT / sweep).exists() else sweep)
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("path", CURRENT, ids=name)
def test_commands_options_and_keys_exist(path: Path) -> None:
    assert [mistake for call in calls(path) for mistake in mistakes(call)] == []


def test_mistakes_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[here](#a-page) [gone](gone.md) ![](gone.png)\n`gat-sweep runs` and `gat-sweep run widths --holt`\n"
        "```\ngat-sweep plan widhts --set train.stepz=2 \\\n  --recipe digit\n```\n"
        "```console\n$ gat-sweep status --all\ngat-sweep nothing, this is output\n```\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "gone.png"]
    found = [mistake for call in calls(page) for mistake in mistakes(call)]
    expected = ["no recipe digit", "--set: unknown key", "no sweep file widhts", "status has no --all"]
    expected += ["no command runs", "run has no --holt"]
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_every_command_has_a_page() -> None:
    named = {call.command for path in CURRENT for call in calls(path)}
    assert set(cli.commands) <= named


def test_the_architecture_shows_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.parent for package in ("gat_sweep", "analysis") for path in (ROOT / package).rglob("__init__.py")]
    assert [room.name for room in rooms if f"{room.name}/" not in text] == []
    files = [path for package in ("gat_sweep", "analysis") for path in (ROOT / package).rglob("*.py")]
    assert [name(file) for file in files if file.stem != "__init__" and file.name not in text] == []


def test_the_config_reference_is_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "config_reference.py"))
    assert written["TARGET"].read_text(encoding="utf-8") == written["reference"](), "run `make docs`"
