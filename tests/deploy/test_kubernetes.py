"""The manifests for KubeRay: schemas, what they refer to, rights, ports, and what Ray and the docs make of them."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.manifests import Thing, compose, containers, dangling, labels, misfits, pods, reaches, rights

from gat_sweep.autoscaler import _types
from gat_sweep.cli import cli
from gat_sweep.cluster import MAX_DRIVERS
from gat_sweep.files.storage import write

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
SECTION = (ROOT / "docs" / "cluster.md").read_text().partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
CRDS = os.environ.get("KUBERAY_CRDS")  # folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml
GIB = 2**30


@pytest.fixture
def things() -> list[Thing]:
    """All that the walk-through applies; a test may spoil it."""
    return [*compose(FOLDER), yaml.safe_load((FOLDER / "rayjob.yaml").read_text())]


def one(things: list[Thing], kind: str, name: str | None = None) -> Thing:
    (found,) = [t for t in things if t["kind"] == kind and name in (None, t["metadata"]["name"])]
    return found


def pod(things: list[Thing], name: str) -> Thing:
    (found,) = [template for thing in things for group, template in pods(thing) if group == name]
    return found


# ---------------------------------------------------------------- schemas


def test_kubectl_makes_the_same_of_the_files() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True)
    key = lambda thing: (thing["kind"], thing["metadata"]["name"])  # noqa: E731
    theirs, ours = list(yaml.safe_load_all(done.stdout)), compose(FOLDER)
    assert sorted(theirs, key=key) == sorted(ours, key=key)


def test_every_thing_fits_its_schema(things: list[Thing]) -> None:
    crds = Path(CRDS) if CRDS else None
    assert [line for thing in things for line in misfits(thing, crds)] == []


MISTAKES: dict[str, Callable[[list[Thing]], Any]] = {
    "replica": lambda t: one(t, "Deployment")["spec"].update(replica=1),
    "replicas": lambda t: one(t, "StatefulSet")["spec"].update(replicas="one"),
    "podSelecter": lambda t: one(t, "NetworkPolicy", "nobody")["spec"].update(podSelecter={}),
    "containerport": lambda t: pod(t, "mlflow")["spec"]["containers"][0]["ports"][0].update(containerport=1),
    "runAsUser": lambda t: pod(t, "gpu")["spec"]["securityContext"].update(runAsUser="root"),
    "initcontainers": lambda t: pod(t, "head")["spec"].update(initcontainers=[]),
    "privilege": lambda t: one(t, "RayCluster")["spec"]["autoscalerOptions"]["securityContext"].update(privilege=1),
}
MISTAKES_OF_KUBERAY: dict[str, Callable[[list[Thing]], Any]] = {
    "authOptions": lambda t: one(t, "RayCluster")["spec"]["authOptions"].update(mode="tokens"),
    "maxReplica": lambda t: one(t, "RayCluster")["spec"]["workerGroupSpecs"][0].update(maxReplica=1),
    "rayStartParams": lambda t: one(t, "RayCluster")["spec"]["headGroupSpec"]["rayStartParams"].update(x=1),
    "submissionMode": lambda t: one(t, "RayJob")["spec"].update(submissionMode=1),
    "entryPoint": lambda t: one(t, "RayJob")["spec"].update(entryPoint="ls"),
}


@pytest.mark.parametrize("mistake", [*MISTAKES, *MISTAKES_OF_KUBERAY])
def test_a_mistake_does_not_fit(things: list[Thing], mistake: str) -> None:
    if mistake in MISTAKES_OF_KUBERAY and not CRDS:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs")
    (MISTAKES | MISTAKES_OF_KUBERAY)[mistake](things)
    lines = [line for thing in things for line in misfits(thing, Path(CRDS) if CRDS else None)]
    assert lines and all(mistake in line for line in lines)


# ---------------------------------------------------------------- what they refer to


def secrets_of_the_walk_through() -> dict[str, set[str]]:
    """Keys of each secret that it makes; none are known of a file."""
    made = re.findall(r"^kubectl create secret generic (\S+) (.*)$", SECTION, re.MULTILINE)
    return {name: set(re.findall(r"--from-literal=(\w+)=", options)) for name, options in made}


def test_all_that_is_referred_to_is_there(things: list[Thing]) -> None:
    assert dangling(things, secrets_of_the_walk_through()) == []


def environment(things: list[Thing], name: str) -> list[dict[str, Any]]:
    return pod(things, name)["spec"]["containers"][0]["env"]


LOST: dict[str, Callable[[list[Thing]], Any]] = {
    "mlflow: no serviceaccount mlflw": lambda t: pod(t, "mlflow")["spec"].update(serviceAccountName="mlflw"),
    "gpu: no secret buckets": lambda t: pod(t, "gpu")["spec"]["initContainers"][0]["envFrom"][1]["secretRef"].update(
        name="buckets"
    ),
    "head: no configmap place": lambda t: pod(t, "head")["spec"]["containers"][0]["envFrom"][0]["configMapRef"].update(
        name="place"
    ),
    "postgres: the secret has no word": lambda t: environment(t, "postgres")[-1]["valueFrom"]["secretKeyRef"].update(
        key="word"
    ),
    "gpu: no volume dat": lambda t: pod(t, "gpu")["spec"]["containers"][0]["volumeMounts"][0].update(name="dat"),
    "gpu: no claim data": lambda t: pod(t, "gpu")["spec"]["volumes"].append(
        {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}
    ),
    "mlflow: selects other labels than its own": lambda t: pod(t, "mlflow")["metadata"].update(labels={"app": "ml"}),
    "NetworkPolicy mlflow-to-postgres: selects no pod": lambda t: one(t, "NetworkPolicy", "mlflow-to-postgres")[
        "spec"
    ].update(podSelector={"matchLabels": {"app": "postgresql"}}),
    "Service postgres: no pod of it has its port": lambda t: one(t, "Service", "postgres")["spec"]["ports"][0].update(
        port=5433
    ),
    "no Service mlflows:5000": lambda t: environment(t, "head")[0].update(value="http://mlflows:5000"),
    "no Service pg": lambda t: one(t, "StatefulSet")["spec"].update(serviceName="pg"),
    "no RayCluster gat": lambda t: one(t, "RayJob")["spec"].update(clusterSelector={"ray.io/cluster": "gat"}),
}


@pytest.mark.parametrize("line", LOST)
def test_what_is_not_there_is_found(things: list[Thing], line: str) -> None:
    LOST[line](things)
    assert any(found.startswith(line) for found in dangling(things, secrets_of_the_walk_through()))


def test_no_secret_is_in_a_file(things: list[Thing]) -> None:
    """A Secret is not among the things, and variables with such a name have no value."""
    assert not [thing for thing in things if thing["kind"] == "Secret"]
    entries = [e for t in things for _, p in pods(t) for c in containers(p["spec"]) for e in c.get("env", [])]
    with_value = [entry["name"] for entry in entries if "value" in entry]
    secret = re.compile("PASS|SECRET|TOKEN|KEY")
    assert not [name for name in [*with_value, *one(things, "ConfigMap")["data"]] if secret.search(name)]
    assert secret.search("POSTGRES_PASSWORD") and secret.search("AWS_ACCESS_KEY_ID")
    assert "@" in "".join(pod(things, "mlflow")["spec"]["containers"][0]["args"])  # the address names the user alone
    assert not re.search(r"//[^/\s]*:[^/\s]*@", json.dumps(things))


# ---------------------------------------------------------------- rights and limits


def test_no_container_is_root_or_takes_more_than_it_asks_for(things: list[Thing]) -> None:
    assert rights(things) == []
    assert one(things, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


TAKEN: dict[str, Callable[[list[Thing]], Any]] = {
    "gpu: may be root": lambda t: pod(t, "gpu")["spec"]["securityContext"].update(runAsNonRoot=False),
    "postgres: may be root": lambda t: pod(t, "postgres")["spec"]["securityContext"].update(runAsUser=0),
    "mlflow: any system call": lambda t: pod(t, "mlflow")["spec"]["securityContext"].pop("seccompProfile"),
    "gpu: shares the machine's": lambda t: pod(t, "gpu")["spec"].update(hostIPC=True),
    "head: autoscaler may gain rights": lambda t: one(t, "RayCluster")["spec"]["autoscalerOptions"].pop(
        "securityContext"
    ),
    "head: fetch-data may gain rights": lambda t: pod(t, "head")["spec"]["initContainers"][0]["securityContext"].update(
        privileged=True
    ),
    "gpu: ray-worker may use more": lambda t: pod(t, "gpu")["spec"]["containers"][0]["resources"]["requests"].update(
        memory="1Gi"
    ),
    "mlflow: mlflow may use more": lambda t: pod(t, "mlflow")["spec"]["containers"][0].pop("resources"),
    "postgres: postgres has an image of no version": lambda t: pod(t, "postgres")["spec"]["containers"][0].update(
        image="postgres:latest"
    ),
    "head: ray-head has an image of no version": lambda t: pod(t, "head")["spec"]["containers"][0].update(image="gat"),
}


@pytest.mark.parametrize("line", TAKEN)
def test_rights_are_found(things: list[Thing], line: str) -> None:
    TAKEN[line](things)
    assert [found for found in rights(things) if found.startswith(line)] and len(rights(things)) == 1


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Gi)?", text).groups()  # type: ignore[union-attr]
    return int(number) * (GIB if unit else 1)


def test_shared_memory_holds_rays_objects_and_more(things: list[Thing]) -> None:
    """Ray's store lies in it, beside NCCL's buffers, and all of it counts against the limit of the pod."""
    spec = one(things, "RayCluster")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        inside = group["template"]["spec"]
        (shm,) = [volume["emptyDir"] for volume in inside["volumes"] if volume["name"] == "shm"]
        store = size(group["rayStartParams"]["object-store-memory"])
        memory = size(inside["containers"][0]["resources"]["limits"]["memory"])
        assert shm["medium"] == "Memory" and store + 2 * GIB <= size(shm["sizeLimit"]) <= memory / 4
        assert {"name": "shm", "mountPath": "/dev/shm"} in inside["containers"][0]["volumeMounts"]


def test_trials_have_time_to_save(things: list[Thing]) -> None:
    """From SIGTERM to SIGKILL: of a pod, in which Ray drains the node for a little less, and of a job on the head."""
    variables = {entry["name"]: entry.get("value") for entry in environment(things, "gpu")}
    grace = pod(things, "gpu")["spec"]["terminationGracePeriodSeconds"]
    assert 120 <= int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) <= grace - 10
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "300"} in environment(things, "head")


# ---------------------------------------------------------------- ports


def places(things: list[Thing]) -> dict[str, Thing]:
    """Pods that packets come from: ours, the operator, and those that may reach nothing."""
    found = {
        name: {"namespace": thing["metadata"]["namespace"], "labels": labels(thing, name, template)}
        for thing in things
        for name, template in pods(thing)
    }
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    strangers = {"stranger": "gat-sweep", "impostor": "other", "internet": None}
    theirs = {"stranger": operator, "impostor": {"app": "ray"}, "internet": {}}
    return {
        **found,
        "operator": {"namespace": "kuberay-system", "labels": operator},
        **{name: {"namespace": space, "labels": theirs[name]} for name, space in strangers.items()},
    }


PORTS = (22, 5000, 5432, 6379, 8080, 8265, 10001, 44217, 52365, 31337)


def open_ports(things: list[Thing]) -> set[tuple[str, str, int]]:
    """(source, target, port) that the policies let through."""
    here = places(things)
    return {
        (source, target, port)
        for source, target in itertools.product(here, ("head", "gpu", "mlflow", "postgres"))
        for port in PORTS
        if reaches(things, here[source], here[target], port)
    }


def documented() -> set[tuple[str, str, int]]:
    """The same, by the table "Open ports" of the walk-through."""
    table = SECTION.partition("### Open ports")[2].partition("### ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {
        (source, target, port)
        for target, ports, _, sources, _ in rows[2:]
        for source in sources.split(", ")
        for port in (PORTS if ports == "all" else [int(ports)])
    }


def test_the_ports_are_those_of_the_table(things: list[Thing]) -> None:
    assert open_ports(things) == documented()
    assert ("operator", "head", 8265) in documented() and ("mlflow", "postgres", 5432) in documented()


OPENED: dict[tuple[str, str, int], Callable[[list[Thing]], Any]] = {
    ("internet", "mlflow", 22): lambda t: (
        t.remove(one(t, "NetworkPolicy", "nobody")) or t.remove(one(t, "NetworkPolicy", "ray-to-mlflow"))
    ),
    ("gpu", "mlflow", 8080): lambda t: one(t, "NetworkPolicy", "ray-to-mlflow")["spec"]["ingress"][0].pop("ports"),
    ("internet", "postgres", 5432): lambda t: one(t, "NetworkPolicy", "mlflow-to-postgres")["spec"]["ingress"][0].pop(
        "from"
    ),
    ("stranger", "head", 6379): lambda t: one(t, "NetworkPolicy", "ray-to-ray")["spec"].update(
        ingress=[{"from": [{"podSelector": {}}]}]
    ),
    ("impostor", "gpu", 6379): lambda t: one(t, "NetworkPolicy", "ray-to-ray")["spec"]["ingress"][0]["from"][0].update(
        namespaceSelector={}
    ),
    ("operator", "gpu", 8265): lambda t: one(t, "NetworkPolicy", "operator-to-head")["spec"].update(
        podSelector={"matchLabels": {"app": "ray"}}
    ),
}


@pytest.mark.parametrize("way", OPENED)
def test_an_open_port_is_found(things: list[Thing], way: tuple[str, str, int]) -> None:
    OPENED[way](things)
    assert way in open_ports(things) - documented()


# ---------------------------------------------------------------- Ray and the sweep


def test_rays_autoscaler_reads_the_cluster(things: list[Thing]) -> None:
    """By the function that it uses: a head without CPUs that drives sweeps, and GPU pods from zero."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = one(things, "RayCluster")
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    head, gpu = (config["available_node_types"][name] for name in (config["head_node_type"], "gpu"))
    drives = {"CPU": 0, "sweep_driver": MAX_DRIVERS}
    assert {name: head["resources"].get(name) for name in drives} == drives and "GPU" not in head["resources"]
    limits = pod(things, "gpu")["spec"]["containers"][0]["resources"]["limits"]
    assert (gpu["resources"]["CPU"], gpu["resources"]["GPU"]) == (int(limits["cpu"]), limits["nvidia.com/gpu"])
    assert 0 == gpu["min_workers"] < gpu["max_workers"] and cluster["spec"]["workerGroupSpecs"][0]["replicas"] == 0
    assert _types(config) == [(40.0, 4.0, 4)]
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}


def test_one_ray_is_everywhere(things: list[Thing]) -> None:
    assert one(things, "RayCluster")["spec"]["rayVersion"] == PINS["ray"]
    images = {c["image"] for t in things for name, p in pods(t) if name != "postgres" for c in containers(p["spec"])}
    (image,) = images
    assert image.endswith(f"-ray{PINS['ray']}") and f"docker push {image}\n" in SECTION
    assert f"-t {image} ." in SECTION and f"-t {image} ." in (ROOT / "deploy" / "Dockerfile").read_text()


def sweep_commands(things: list[Thing]) -> Iterator[list[str]]:
    yield shlex.split(one(things, "RayJob")["spec"]["entrypoint"])
    for line in re.findall(r"^kubectl exec .* -- (gat-sweep .*)$", SECTION, re.MULTILINE):
        yield shlex.split(line)


def test_the_commands_on_the_head_exist(things: list[Thing]) -> None:
    found = list(sweep_commands(things))
    assert {words[1] for words in found} == {"run", "doctor", "status", "logs"}
    for _, name, *arguments in found:
        cli.commands[name].make_context(name, arguments)
    (data,) = {words[words.index("--set") + 1] for words in found if "--set" in words}
    mounts = pod(things, "gpu")["spec"]["containers"][0]["volumeMounts"]
    assert data == "data.path=/data/imagenet" and {"name": "data", "mountPath": "/data"} in mounts


def test_the_data_come_from_the_bucket(things: list[Thing], tmp_path: Path, bucket: Any) -> None:
    """The words of the init container, against an S3 server; what is not there ends it."""
    (fetch,) = pod(things, "gpu")["spec"]["initContainers"]
    assert fetch == pod(things, "head")["spec"]["initContainers"][0]
    (bucket / "data" / "imagenet").filesystem.create_dir((bucket / "data" / "imagenet").path)
    for name in ("manifest.json", "shard.arrow"):
        write(bucket / "data" / "imagenet" / name, name.encode())
    code = fetch["args"][0].replace("'/data'", repr(str(tmp_path / "data")))

    def run(place: str) -> "subprocess.CompletedProcess[bytes]":
        environment = {**os.environ, "DATA": place}
        return subprocess.run([sys.executable, *fetch["command"][1:], code], env=environment, capture_output=True)

    assert run(str(bucket / "data")).returncode == 0
    copied = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*"))
    assert copied == ["data/imagenet/manifest.json", "data/imagenet/shard.arrow"]
    assert (tmp_path / "data" / "imagenet" / "shard.arrow").read_bytes() == b"shard.arrow"
    assert run(str(bucket / "dta")).returncode != 0
