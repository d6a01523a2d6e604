"""The cluster files and the walk-through, against Ray's own schema, rules and commands."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gat_sweep import cluster
from gat_sweep.autoscaler import UNKNOWN, node_types
from gat_sweep.cli import cli
from gat_sweep.cluster import MAX_DRIVERS, Node, check_socket_paths
from gat_sweep.errors import UserError

ROOT = Path(__file__).parent.parent
AWS, ONPREMISE = "cluster.yaml", "cluster-onpremise.yaml"
COMMANDS = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())

# ---------------------------------------------------------------- the files


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of it before it asks the provider."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def ray_starts(commands: list[str]) -> list[tuple[str, list[str]]]:
    """(what comes before, arguments) of the `ray start` among commands."""
    found = [command.split("ray start", 1) for command in commands if "ray start" in command]
    return [(before, shlex.split(arguments)) for before, arguments in found]


@pytest.mark.parametrize("name", [AWS, ONPREMISE])
def test_ray_takes_the_files(name: str) -> None:
    """By the schema of the Ray that nodes install; and none of Ray's own setup lines is left among ours."""
    assert PINS["ray"] == ray.__version__
    config = read(name)
    prepared = validated(config)
    assert prepared["head_setup_commands"] == config["setup_commands"] + config.get("head_setup_commands", [])
    assert prepared["worker_setup_commands"] == config["setup_commands"]
    for kind in ("head", "worker"):
        assert prepared[f"{kind}_start_ray_commands"] == config[f"{kind}_start_ray_commands"]
    assert set(config["file_mounts"].values()) == {"~/.ray/auth_token"} | {
        source for source in config["file_mounts"].values() if (ROOT / source).exists()
    }


def without(config: dict[str, Any], key: str) -> None:
    del config[key]


WRONG: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    (AWS, lambda c: c.update(learning_rate=1)),
    (AWS, lambda c: c["available_node_types"]["gpu"].update(spot=True)),
    (AWS, lambda c: c["available_node_types"]["gpu"].update(min_workers=9)),
    (AWS, lambda c: c["provider"]["security_group"].update(Ports=[22])),
    (AWS, lambda c: c["auth"].update(password="x")),
    (AWS, lambda c: c.update(head_node_type="heda")),
    (AWS, lambda c: c.update(setup_commands=[{"run": "ls"}])),
    (ONPREMISE, lambda c: c.update(available_node_types={"gpu": {}})),
    (ONPREMISE, lambda c: without(c["provider"], "head_ip")),
    (ONPREMISE, lambda c: c.update(idle_minutes=3)),
]


@pytest.mark.parametrize(("name", "spoil"), WRONG)
def test_ray_refuses_mistakes(name: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
    config = read(name)
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, click.ClickException)):
        validated(config)


@pytest.mark.parametrize("name", [AWS, ONPREMISE])
def test_every_node_asks_for_the_token(name: str) -> None:
    config = read(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"])
    for kind in ("head", "worker"):
        ((before, arguments),) = ray_starts(config[f"{kind}_start_ray_commands"])
        assert before.split()[-1] == "RAY_AUTH_MODE=token"
        assert ("--head" in arguments) == (kind == "head")
        parsed(ray_cli(), ["start", *arguments])
        assert [a for a in arguments if "dashboard" in a] == ["--dashboard-host=127.0.0.1"] * (kind == "head")


def test_the_head_only_drives() -> None:
    config = read(AWS)
    head = config["available_node_types"]["head"]
    assert config["head_node_type"] == "head" and head["resources"] == {"CPU": 0, "sweep_driver": MAX_DRIVERS}
    assert re.match(r"[cmr]\d", head["node_config"]["InstanceType"])  # AWS's names of machines without accelerator
    ((_, arguments),) = ray_starts(read(ONPREMISE)["head_start_ray_commands"])
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
    assert (values["num-cpus"], values["num-gpus"]) == ("0", "0")
    assert json.loads(values["resources"]) == {"sweep_driver": MAX_DRIVERS}


def test_workers_are_on_spot_and_the_head_is_not() -> None:
    config = read(AWS)
    types = config["available_node_types"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert 0 == types["gpu"]["min_workers"] < types["gpu"]["max_workers"] == config["max_workers"]
    assert config["provider"]["cache_stopped_nodes"] is False and config["idle_timeout_minutes"] > 0


def test_only_ssh_is_open() -> None:
    """By the rules that Ray writes for this file; MLflow listens on loopback in both."""
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    rules = _create_default_inbound_rules({"sg-1"}, read(AWS)["provider"]["security_group"].get("IpPermissions", []))
    inside, outside = ([rule for rule in rules if key in rule] for key in ("UserIdGroupPairs", "IpRanges"))
    assert len(inside) + len(outside) == len(rules) == 2
    assert [pair["GroupId"] for pair in inside[0]["UserIdGroupPairs"]] == ["sg-1"]
    assert (outside[0]["FromPort"], outside[0]["ToPort"], outside[0]["IpProtocol"]) == (22, 22, "tcp")
    for name in (AWS, ONPREMISE):
        (server,) = [command for command in read(name)["head_start_ray_commands"] if "mlflow server" in command]
        assert "--host 127.0.0.1" in server and "--allowed-hosts 127.0.0.1:5000,localhost:5000" in server
        assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in server


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|aws_(access|secret)|password|BEGIN [A-Z ]*KEY|hf_\w{20}|://[^/\s]*@|\b[0-9a-fA-F]{32,}\b"
    r"|\b(?=\w*\d)(?=\w*[a-z])(?=\w*[A-Z])[\w+/]{40,}\b",
    re.IGNORECASE,
)


def test_no_secret_is_in_the_files() -> None:
    for name in (AWS, ONPREMISE, "docs/cluster.md"):
        assert SECRET.findall((ROOT / name).read_text()) == []
    for secret in ("0123456789abcdef" * 4, "AKIAABCDEFGHIJKLMNOP", "s3://key:word@bucket", "aws_secret_access_key: x"):
        assert SECRET.search(f"a: {secret}\n")
    roles = [kind["node_config"]["IamInstanceProfile"]["Name"] for kind in read(AWS)["available_node_types"].values()]
    assert len(set(roles)) == 2 and "aws_credentials" not in read(AWS)["provider"]


def test_nodes_install_what_the_tests_run() -> None:
    """The pins of constraints.txt, one Python that the package allows, and all that the package is made of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pythons = set()
    for name in (AWS, ONPREMISE):
        config = read(name)
        commands = [command for key in COMMANDS for command in config.get(key, [])]
        pins = [Requirement(pin) for command in commands for pin in re.findall(r"[\w-]+==[\w.]+", command)]
        assert all(str(pin.specifier) == f"=={PINS[pin.name]}" for pin in pins)
        (install,) = [command for command in config["setup_commands"] if " pip install " in command]
        assert shlex.split(install)[-4:] == ["-c", "~/gat-sweep/constraints.txt", "-e", "~/gat-sweep"]
        pythons |= {version for command in commands for version in re.findall(r"--python (\d\S+)", command)}
        mounted = {remote.removeprefix("~/gat-sweep/"): local for remote, local in config["file_mounts"].items()}
        needed = [*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]]
        assert all(mounted[part] == part for part in [*needed, "pyproject.toml", "constraints.txt", "sweeps"])
    (python,) = pythons
    assert python in SpecifierSet(project["project"]["requires-python"])
    assert python == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_no_hyperparameter_is_in_the_files() -> None:
    from gat_sweep.config import TrialConfig

    sections = "|".join(TrialConfig.model_fields)
    for name in (AWS, ONPREMISE):
        assert re.findall(rf"--set|--recipe|\b(?:{sections})\.\w+=", (ROOT / name).read_text()) == []


def test_a_spot_notice_drains_the_node(tmp_path: Path) -> None:
    """The loop of cluster.yaml against a stand-in for AWS that gives the notice when it is asked for the third time."""
    (loop,) = [command for command in read(AWS)["worker_start_ray_commands"] if "instance-action" in command]
    tools, log, asked = tmp_path / "bin", tmp_path / "ray.log", tmp_path / "asked"
    tools.mkdir()
    stand_ins = {
        "curl": 'case "$*" in *latest/api/token) echo tok;; *"token: tok"*/spot/instance-action) '
        f"echo >> {asked}; test $(wc -l < {asked}) -ge 3 || exit 22;; *) exit 6;; esac",
        "ray": f'printf "%q " $RAY_ADDRESS $RAY_AUTH_MODE "$@" > {log}.new; mv {log}.new {log}',
        "sleep": "exit 0",
    }
    for name, script in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "RAY_HEAD_IP": "10.0.0.1"}
    subprocess.run(["bash", "-c", loop], env=environment, check=True, timeout=20)
    deadline = time.monotonic() + 20
    while not log.exists():
        assert time.monotonic() < deadline, (tmp_path / "spot.log").read_text()
        time.sleep(0.05)
    where, mode, command, *arguments = shlex.split(log.read_text())
    assert (where, mode, command) == ("10.0.0.1:6379", "token", "drain-node")
    parsed(ray_cli(), [command, *arguments])
    assert "DRAIN_NODE_REASON_PREEMPTION" in arguments and len(asked.read_text()) == 3


# ---------------------------------------------------------------- the walk-through


def ray_cli() -> click.Group:
    from ray.scripts.scripts import cli as commands

    return commands


def parsed(group: click.Group, arguments: list[str]) -> None:
    """Raises click's own error when there is no such command, option or choice, or an argument is missing."""
    command = group.commands[arguments[0]]
    if isinstance(command, click.Group):
        return parsed(command, arguments[1:])
    command.make_context(arguments[0], arguments[1:])


def commands_of(text: str) -> Iterator[list[str]]:
    """gat-sweep's and ray's in code blocks and in line, with those that ray is given to run."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for block in blocks:
        text = text.replace(block, "")
    for line in lines + re.findall(r"`((?:gat-sweep|ray) [^`]+)`", text):
        words = shlex.split(line.partition(" > ")[0], comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        if words and words[0] in ("gat-sweep", "ray"):
            inner = shlex.split(words[-1]) if words[:2] == ["ray", "exec"] else []
            if "--" in words:
                words, inner = words[: words.index("--") + 2], words[words.index("--") + 1 :]
            yield words
            if inner:
                yield inner


def test_a_folder_too_deep_for_rays_sockets_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray would end in a traceback. The length that the message allows is the longest that a session's path allows."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("d" * 80)))
    with pytest.raises(
        UserError, match=r"set TMPDIR \(or RAY_TMPDIR\) to a folder with a path of at most \d+ letters"
    ) as refused:
        check_socket_paths()
    most = int(re.findall(r"at most (\d+)", str(refused.value))[0])
    for length, fits in [(most, True), (most + 1, False)]:
        monkeypatch.setenv("TMPDIR", "/" + "d" * (length - 1))
        session = f"{os.environ['TMPDIR']}/ray/session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{2**22}"
        assert (len(f"{session}/sockets/plasma_store") <= 107) == fits
        if fits:
            check_socket_paths()


def test_a_process_counts_the_processors_that_it_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from gat_sweep.cluster import local_resources; print(local_resources().cpus)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_commands_of_the_walk_through_exist() -> None:
    groups = {"gat-sweep": cli, "ray": ray_cli()}
    found = list(commands_of((ROOT / "docs" / "cluster.md").read_text()))
    names = {" ".join(words[:2]) for words in found}
    assert names >= {"gat-sweep run", "gat-sweep doctor", "gat-sweep status", "gat-sweep stop", "gat-sweep logs"}
    assert names >= {"ray up", "ray down", "ray exec", "ray attach", "ray job", "ray get-auth-token", "ray status"}
    for words in found:
        if len(words) > 2:  # more than a name
            parsed(groups[words[0]], words[1:])
    for wrong in ("gat-sweep run a.yaml --adress auto", "ray up", "ray attach c.yaml --port 5000", "gat-sweep logs"):
        name, *arguments = wrong.split()
        with pytest.raises(click.UsageError):
            parsed(groups[name], arguments)
    studies = {
        words[2] for words in found if words[:2] in (["gat-sweep", "run"], ["gat-sweep", "doctor"]) and words[2:]
    }
    assert studies and all((ROOT / "sweeps" / f"{study}.yaml").is_file() for study in studies)


# ---------------------------------------------------------------- how far a cluster grows


HEAD = Node("head", "10.0.0.1", 0, 0, is_head=True)
SMALL, LARGE = Node("small", "10.0.0.2", 8, 0), Node("large", "10.0.0.3", 48, 4)


@pytest.mark.parametrize(
    ("types", "reported", "up", "grows", "most"),
    [
        ([(8.0, 4.0, 2), (16.0, 0.0, 1)], False, [HEAD], True, [(8, 4), (8, 4), (16, 0)]),
        ([(UNKNOWN, UNKNOWN, 2)], False, [HEAD, LARGE], True, None),  # one more may come
        ([(UNKNOWN, UNKNOWN, 2)], False, [HEAD, LARGE, SMALL], False, None),  # all that there are
        (None, True, [HEAD, LARGE], True, None),  # an autoscaler somewhere else
        (None, False, [HEAD, LARGE], False, None),
    ],
)
def test_a_cluster_grows_as_far_as_its_autoscaler_may(
    monkeypatch: pytest.MonkeyPatch, types: Any, reported: bool, up: list[Node], grows: bool, most: Any
) -> None:
    """By its file, or by its report where the file is not here. A head without CPUs is not a machine for work."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"sweep_driver": 8})
    monkeypatch.setattr(cluster, "nodes", lambda: up)
    free = {"large": {"CPU": 40.0, "GPU": 3.0}, "head": {"sweep_driver": 8.0}}
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
    monkeypatch.setattr(cluster.autoscaler, "is_there", lambda: reported)
    monkeypatch.setattr(cluster.autoscaler, "node_types", lambda address: types)
    found = cluster.look("10.0.0.1:6379")
    assert len(found.machines) == len(up) - 1 and found.drives_sweeps and found.address == "10.0.0.1:6379"
    assert found.grows == grows and found.free == (cluster.Machine(40, 3), cluster.Machine(0, 0))
    assert found.most == (None if most is None else tuple(cluster.Machine(*machine) for machine in most))


def test_the_autoscaler_of_this_cluster_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is found by its command line; another cluster's, and a file that is not there, say nothing."""
    file = tmp_path / "bootstrap.yaml"
    file.write_text("max_workers: 3\nhead_node_type: h\navailable_node_types: {h: {}, w: {resources: {CPU: 4}}}\n")
    words = ["python", "ray/autoscaler/v2/monitor.py", "--gcs-address=10.0.0.1:6379", f"--autoscaling-config={file}"]
    monkeypatch.setattr("psutil.process_iter", lambda names: [SimpleNamespace(info={"cmdline": words})])
    assert node_types("10.0.0.1:6379") == [(4.0, 0.0, 3)]
    assert node_types("10.0.0.2:6379") is None
    file.unlink()
    assert node_types("10.0.0.1:6379") is None
