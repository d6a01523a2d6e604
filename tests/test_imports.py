"""Imports run one way, and what only reads files loads no torch."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gat_sweep.cli import GROUPS
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.record import open_run
from gat_sweep.sweep import Sweep, trial_id

ROOT = Path(__file__).parents[1]

# The floors of the house. A room imports from the floors below its own, and from itself.
FLOORS = [
    {"gat", "autoscaler", "leftovers", "text", "version", "errors", "precision", "recipes"},
    {"config", "files", "cluster"},
    {"language"},
    {"compute"},
    {"data", "recipe"},
    {"vision", "sweep"},
    {"run", "plan", "metrics", "encode"},
    {"train", "monitor"},
    {"launch", "results", "inspection", "speed", "pretrained"},
    {"commands"},
    {"cli"},
    {"entry"},
]
# The files that may import a package; a folder stands for all that is in it.
MAY_IMPORT = {
    "click": ["cli.py", "commands/"],
    "rich": ["commands/", "launch/", "monitor/", "encode/job.py", "inspection/inspect.py"],
    # autoscaler.py reads a RayCluster of Kubernetes with the function of Ray's autoscaler.
    "ray": ["autoscaler.py", "cluster.py", "launch/driver.py", "launch/demand.py", "encode/on_ray.py"],
    "mlflow": ["monitor/tracking.py", "monitor/models.py"],  # what trials write; what they trained
    "analysis": ["results/", "inspection/", "commands/", "launch/race.py", "run/race.py"],
    "benchmarks": [],
}
# Modules that load neither torch nor Ray nor MLflow; every command and every analysis comes on top.
LIGHT = [
    *("cli", "errors", "text", "version", "config", "compute", "recipe", "sweep", "plan", "cluster"),
    *("autoscaler", "leftovers", "run.crowd", "launch.places"),
    *("files.storage", "files.yamlfile", "files.npy", "files.jsonfile", "files.credentials"),
    *("gat.spec", "gat.flops", "gat.memory", "gat.scaling"),
    *("run.record", "run.trial", "run.table", "run.journal", "run.saved", "run.alive", "run.stop", "run.lease"),
    *("monitor.budget", "monitor.progress", "monitor.status", "monitor.ui"),
    *(
        "results.study",
        "results.fit_law",
        "results.predict",
        "results.predict_budget",
        "results.allocate",
        "results.report",
        "results.paper",
    ),
]
TEXT = ["tokenizers", "transformers", "wordllama", "emoji"]  # what only captions need
HEAVY = ["torch", "torchvision", "timm", "diffusers", "ray", "mlflow"]


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions and under TYPE_CHECKING as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """The folder below gat_sweep that a file lies in, or its own name when it lies in none."""
    return path.relative_to(ROOT / "gat_sweep").parts[0].removesuffix(".py")


def broken_rules(files: list[Path]) -> list[str]:
    """One line for each import of gat_sweep from gat_sweep that does not go down."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    found = []
    for path in files:
        here = room(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "gat_sweep" and len(parts) > 1:
                there = parts[1]
                if there != here and floor[there] >= floor[here]:
                    found.append(f"{path.name}: {here} imports {name}")
    return found


def test_every_import_goes_down() -> None:
    files = [path for path in python_files("gat_sweep") if path.parent != ROOT / "gat_sweep" or path.stem != "__init__"]
    assert {room(path) for path in files} == {name for names in FLOORS for name in names}
    assert broken_rules(files) == []


def test_an_import_inside_a_function_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "gat_sweep" / "data").mkdir(parents=True)
    up = tmp_path / "gat_sweep" / "data" / "up.py"
    up.write_text("def f():\n    from gat_sweep.train.loop import train\n")
    assert broken_rules([up])[0] == "up.py: data imports gat_sweep.train.loop"


def circles(modules: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in however many steps: what is left when those without imports are taken away."""
    left = dict(modules)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    # What only imports a circle, and is not of one, goes too.
    while unused := [name for name in left if not any(name in needs for needs in left.values())]:
        for name in unused:
            del left[name]
    return sorted(left)


def test_no_circle_of_files() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("gat_sweep", "analysis")
        for path in python_files(package)
    }
    graph = {
        name: {other for other in imported(path) if other in files and other != name} for name, path in files.items()
    }
    # A package's __init__ that re-exports names is not part of a circle for the files inside it.
    graph = {name: {other for other in needs if not name.startswith(f"{other}.")} for name, needs in graph.items()}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b"]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_is_imported_where_it_may_be(package: str) -> None:
    allowed = tuple(MAY_IMPORT[package])
    users = {
        path.relative_to(ROOT / "gat_sweep").as_posix()
        for path in python_files("gat_sweep")
        if any(name.split(".")[0] == package for name in imported(path))
    }
    assert [user for user in users if not user.startswith(allowed)] == []
    assert all(any(user.startswith(place) for user in users) for place in allowed), "a place that no longer needs it"


def test_analysis_imports_itself_alone_and_the_paper_torch_and_itself() -> None:
    names = {name.split(".")[0] for path in python_files("analysis") for name in imported(path)}
    assert not names & {"gat_sweep", "benchmarks", "torch", "ray", "mlflow", "click", "rich"}
    names = {name for path in python_files("gat_sweep/gat") for name in imported(path)}
    ours = {name for name in names if name.startswith("gat_sweep")}
    assert all(name.startswith("gat_sweep.gat") for name in ours)
    assert not {name.split(".")[0] for name in names} & {"timm", "pydantic", "diffusers", "ray"}


def test_an_init_is_one_docstring() -> None:
    for path in [*python_files("gat_sweep"), *python_files("analysis")]:
        if path.name == "__init__.py" and path.parent.name != "pretrained":  # model cards import from it
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), path


# ---------------------------------------------------------------- the half without torch


def loaded_after(code: str) -> list[str]:
    """Which of HEAVY are loaded after some code, in a Python of its own."""
    code += f"\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    return found


def test_modules_that_load_nothing_heavy() -> None:
    commands = [f"commands.{path.stem}" for path in python_files("gat_sweep/commands")]
    ours = [f"gat_sweep.{name}" for name in [*LIGHT, *commands]]
    theirs = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in python_files("analysis")]
    assert loaded_after("\n".join(f"import {name}" for name in [*ours, *theirs])) == []


@pytest.mark.parametrize(("module", "absent"), [("train.loop", ["ray", "mlflow"]), ("encode.sources", HEAVY)])
def test_what_a_module_does_not_bring_along(module: str, absent: list[str]) -> None:
    assert not set(loaded_after(f"import gat_sweep.{module}")) & set(absent)


def test_the_driver_of_encoders_brings_no_torch() -> None:
    assert not set(loaded_after("import gat_sweep.encode.on_ray")) & {"ray", "torch", "timm", "diffusers"}


STUDY = ROOT / "docs" / "study"
LIGHT_COMMANDS = {
    "help": "--help",
    "status of a home": "status",
    "status of a run": "status one-digits",
    "logs": "logs one-digits",
    "stop": "stop one-digits",
    "ui without a store": "ui",
    "plan without a file": "plan nope.yaml",
    "plan with an unknown key": "plan widths --set train.stps=1",
    "run with an unknown size": "run widths --recipe digits --set train.rate_of=M",
    "fit-law": f"fit-law {STUDY / 'split.csv'} --out out",
    "correlate": f"correlate {STUDY / 'split.csv'} --out out",
    "split": f"split {STUDY / 'split.csv'} --out out",
    "rates": f"rates {STUDY / 'rates.csv'} --out out",
    "compare": f"compare {STUDY / 'rates.csv'} --out out",
}
RUN_THEM = """
import json, sys
from gat_sweep.cli import main
found = {}
for name, command in json.loads(sys.argv[1]).items():
    sys.argv = ["gat-sweep", *command.split()]
    try:
        main()
    except SystemExit:
        pass
    found[name] = [module for module in sys.argv_heavy if module in sys.modules]
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def heavy_by_command(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Which of HEAVY are loaded after each light command; all run in one Python, one after the other."""
    folder = tmp_path_factory.mktemp("light")
    config = resolve(load_recipe("digits"), {"model.generator": "S", "model.discriminator": "S"})
    open_run(folder / "runs", "one-digits", Sweep("one", "one trial", "digits", {trial_id(config): config}))
    code = RUN_THEM.replace("sys.argv_heavy", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(LIGHT_COMMANDS)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", LIGHT_COMMANDS)
def test_a_command_that_reads_files_loads_nothing_heavy(heavy_by_command: dict[str, list[str]], name: str) -> None:
    assert heavy_by_command[name] == []


# ---------------------------------------------------------------- one name


def test_a_command_is_a_file_of_its_name_with_a_whole_line_and_an_example() -> None:
    commands = [command for group in GROUPS.values() for command in group]
    by_name = {str(command.name): command for command in commands}
    files = {path.stem for path in python_files("gat_sweep/commands")} - {"__init__", "options", "analyse"}
    analyses = {"correlate", "split", "rates", "compare"}  # allocate has a file of its own
    assert {str(command.name).replace("-", "_") for command in commands} == files | analyses
    for command in commands:
        text = command.help or ""
        first, _, rest = text.partition("\n")
        assert re.fullmatch(r"[A-Z].{20,60}\.", first), f"{command.name}: {first}"
        assert "Example:" in rest, command.name
        lines = [shlex.split(line) for line in rest.partition("Example:")[2].strip().splitlines()]
        assert command.name in [words[1] for words in lines], command.name
        for words in lines:
            there = {option for parameter in by_name[words[1]].params for option in parameter.opts}
            assert words[0] == "gat-sweep" and {word for word in words if word.startswith("--")} <= there, words
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert all(option.help for option in options), command.name


def test_an_analysis_is_a_file_of_its_name() -> None:
    from analysis.catalogue import ANALYSES

    for name in ANALYSES:
        assert (ROOT / "analysis" / f"{name}.py").exists()
        assert (ROOT / "analysis" / "figures" / f"{name}.py").exists()


def test_what_has_no_captions_needs_no_packages_of_text() -> None:
    """A machine without them trains, encodes, evaluates, samples and inspects (benchmarks/gpu_check.py)."""
    modules = [
        "train.loop",
        "encode.encoder",
        "metrics.evaluator",
        "pretrained.sample",
        "inspection.inspect",
        "speed.bench",
    ]
    code = f"import sys; sys.modules |= dict.fromkeys({TEXT!r})\n"  # None: the import fails
    code += "".join(f"import gat_sweep.{module}\n" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
