"""Kubernetes manifests as the API server gets them, and what is wrong with them, one line each."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Thing = dict[str, Any]
RELEASE = "1.32"  # of Kubernetes' own schemas
SMALL = {"name": "n", "image": "i"}


def compose(folder: Path) -> list[Thing]:
    """What `kubectl kustomize` makes of a folder, for the few features that ours uses."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    things = [thing for name in rules["resources"] for thing in yaml.safe_load_all((folder / name).read_text())]
    for made in rules["configMapGenerator"]:
        data = dict(literal.split("=", 1) for literal in made["literals"])
        things.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data})
    things = json.loads(json.dumps(things))  # an anchor of YAML is one object in several places
    names = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in rules["images"]}
    for thing in things:
        if thing["kind"] != "Namespace":
            thing["metadata"]["namespace"] = rules["namespace"]
        for _, pod in pods(thing):
            for container in containers(pod["spec"]):
                container["image"] = names.get(container["image"], container["image"])
    return things


def pods(thing: Thing) -> Iterator[tuple[str, Thing]]:
    """(name, template) of each kind of pod that comes of a thing."""
    spec = thing.get("spec", {})
    if thing["kind"] in ("Deployment", "StatefulSet"):
        yield thing["metadata"]["name"], spec["template"]
    if thing["kind"] == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]
        yield from ((group["groupName"], group["template"]) for group in spec["workerGroupSpecs"])


def labels(thing: Thing, name: str, template: Thing) -> dict[str, str]:
    """Labels of a pod, with those that KubeRay adds."""
    role = {"ray.io/node-type": "head" if name == "head" else "worker"} if thing["kind"] == "RayCluster" else {}
    own: dict[str, str] = template["metadata"]["labels"]
    return own | role


def containers(spec: Thing) -> list[Thing]:
    return [*spec.get("initContainers", []), *spec["containers"]]


# ---------------------------------------------------------------- schemas


def misfits(thing: Thing, crds: Path | None) -> list[str]:
    """What the schema of its kind says of a thing. Unknown keys are refused.

    crds: folder with KubeRay's own CRDs; without it, only the parts of its kinds that are Kubernetes' own are checked.
    """
    if thing["apiVersion"] != "ray.io/v1":
        return _misfits(thing)
    errors = [] if crds is None else list(_crd(crds, thing["kind"]).iter_errors(thing))
    found = [f"{thing['kind']} {'.'.join(str(key) for key in error.path)}: {error.message}" for error in errors]
    return found + [line for part in _standard_parts(thing) for line in _misfits(part)]


def _misfits(thing: Thing) -> list[str]:
    try:
        kubernetes_validate.validate(thing, RELEASE, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{thing['kind']} {'.'.join(str(key) for key in error.path)}: {error.message}"]
    return []


def _standard_parts(thing: Thing) -> Iterator[Thing]:
    """Pod templates of a kind of KubeRay; the autoscaler's settings are those of a container."""
    options = thing["spec"].get("autoscalerOptions")
    if options:
        settings = {key: options[key] for key in ("resources", "securityContext", "env", "envFrom") if key in options}
        yield _template({"spec": {"containers": [SMALL | settings]}})
    for _, pod in pods(thing):
        yield _template(pod)


def _template(pod: Thing) -> Thing:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": pod}


@cache
def _crd(folder: Path, kind: str) -> Any:
    """The strict schema of one of KubeRay's kinds, from its CRD."""
    crd = yaml.safe_load((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    _close(schema)
    return jsonschema.Draft202012Validator(schema)


def _close(schema: Any) -> None:
    """Refuses keys that a CRD does not name: the API server drops them without a word."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)


# ---------------------------------------------------------------- network policies


def selected(labels: dict[str, str], selector: Thing) -> bool:
    assert set(selector) <= {"matchLabels"}, f"only matchLabels are understood, not {selector}"
    return selector.get("matchLabels", {}).items() <= labels.items()


def reaches(things: list[Thing], source: Thing, target: Thing, port: int) -> bool:
    """Whether policies let a pod reach a port of another one, by Kubernetes' rules.

    source, target: {"namespace", "labels"}; a source outside the cluster has namespace None.
    """
    here = [
        thing["spec"]
        for thing in things
        if thing["kind"] == "NetworkPolicy" and thing["metadata"]["namespace"] == target["namespace"]
    ]
    rules = [spec for spec in here if selected(target["labels"], spec["podSelector"])]
    if not rules:
        return True
    return any(
        _admits(rule, source, target["namespace"], port)
        for spec in rules
        for rule in spec.get("ingress", [])
        if "Ingress" in spec["policyTypes"]
    )


def _admits(rule: Thing, source: Thing, namespace: str, port: int) -> bool:
    at = [entry["port"] for entry in rule.get("ports", [])]
    if at and port not in at:
        return False
    return "from" not in rule or any(_is(peer, source, namespace) for peer in rule["from"])


def _is(peer: Thing, source: Thing, namespace: str) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}, f"addresses are not understood: {peer}"
    if "namespaceSelector" in peer:
        place = {"kubernetes.io/metadata.name": source["namespace"]} if source["namespace"] else None
        within = place is not None and selected(place, peer["namespaceSelector"])
    else:
        within = source["namespace"] == namespace
    return within and selected(source["labels"], peer.get("podSelector", {}))


# ---------------------------------------------------------------- what things refer to


def dangling(things: list[Thing], secrets: dict[str, set[str]]) -> list[str]:
    """What a thing refers to and is not there.

    secrets: those that the walk-through makes: keys by name; no keys are known of one that is made from a file.
    """
    names = {kind: {t["metadata"]["name"] for t in things if t["kind"] == kind} for kind in {t["kind"] for t in things}}
    there = {"configmap": names["ConfigMap"], "secret": set(secrets), "serviceaccount": names["ServiceAccount"]}
    found = []
    for thing in things:
        for group, pod in pods(thing):
            claims = {claim["metadata"]["name"] for claim in thing["spec"].get("volumeClaimTemplates", [])}
            needs = [*_needs(pod["spec"], claims)]
            found += [f"{group}: no {kind} {name}" for kind, name in needs if name not in there.get(kind, {})]
            found += [
                f"{group}: the secret has no {key}" for name, key in _keys(pod) if key not in secrets.get(name, {})
            ]
            if "selector" in thing["spec"] and not selected(pod["metadata"]["labels"], thing["spec"]["selector"]):
                found.append(f"{group}: selects other labels than its own")
    found += _unselected(things) + _unserved(things)
    jobs = [thing["spec"] for thing in things if thing["kind"] == "RayJob"]
    clusters = {name for job in jobs for name in job["clusterSelector"].values()}
    stateful = {thing["spec"]["serviceName"] for thing in things if thing["kind"] == "StatefulSet"}
    return (
        found
        + [f"no RayCluster {name}" for name in clusters - names["RayCluster"]]
        + [f"no Service {name}" for name in stateful - names["Service"]]
    )


def _needs(spec: Thing, claims: set[str]) -> Iterator[tuple[str, str]]:
    """(kind, name) of what a pod needs; a mount of a volume that it lacks is a volume."""
    yield "serviceaccount", spec["serviceAccountName"]
    volumes = spec.get("volumes", [])
    for volume in volumes:
        if "secret" in volume:
            yield "secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "configmap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "claim", volume["persistentVolumeClaim"]["claimName"]
    has = {volume["name"] for volume in volumes} | claims
    for container in containers(spec):
        for source in container.get("envFrom", []):
            for kind, of in source.items():
                yield kind.removesuffix("Ref").lower(), of["name"]
        for entry in container.get("env", []):
            for kind, of in entry.get("valueFrom", {}).items():
                yield kind.removesuffix("KeyRef").lower(), of["name"]
        yield from (
            ("volume", mount["name"]) for mount in container.get("volumeMounts", []) if mount["name"] not in has
        )


def _keys(pod: Thing) -> Iterator[tuple[str, str]]:
    """(secret, key) of the single keys of secrets that a pod reads."""
    for container in containers(pod["spec"]):
        for entry in container.get("env", []):
            if "secretKeyRef" in entry.get("valueFrom", {}):
                yield entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"]


def _unselected(things: list[Thing]) -> list[str]:
    """Services and policies that select no pod, and services whose port no container of theirs has."""
    every = [(labels(thing, *pod), pod[1]) for thing in things for pod in pods(thing)]
    found = []
    for thing in things:
        name = f"{thing['kind']} {thing['metadata']['name']}"
        if thing["kind"] == "NetworkPolicy":
            peers = [thing["spec"]["podSelector"]]
            rules = [peer for rule in thing["spec"].get("ingress", []) for peer in rule["from"]]
            peers += [peer["podSelector"] for peer in rules if "namespaceSelector" not in peer]
            for peer in peers:
                if not any(selected(own, peer) for own, _ in every):
                    found.append(f"{name}: selects no pod by {peer}")
        if thing["kind"] == "Service":
            mine = [pod for own, pod in every if selected(own, {"matchLabels": thing["spec"]["selector"]})]
            ports = {port["containerPort"] for pod in mine for c in pod["spec"]["containers"] for port in c["ports"]}
            if not {port["port"] for port in thing["spec"]["ports"]} <= ports:
                found.append(f"{name}: no pod of it has its port")
    return found


def _unserved(things: list[Thing]) -> list[str]:
    """host:port in a URL of a pod that no Service of these has."""
    services = {
        f"{thing['metadata']['name']}:{port['port']}"
        for thing in things
        if thing["kind"] == "Service"
        for port in thing["spec"]["ports"]
    }
    named = set(re.findall(r"(?:http|postgresql\S*)://(?:\w+@)?([\w.-]+:\d+)", json.dumps(things)))
    return [f"no Service {name}" for name in sorted(named - services)]


# ---------------------------------------------------------------- rights


def rights(things: list[Thing]) -> list[str]:
    """Containers that could be root, gain rights, or use memory that they did not ask for."""
    found = []
    for thing in things:
        for group, pod in pods(thing):
            spec, account = pod["spec"], pod["spec"]["securityContext"]
            if not (account.get("runAsNonRoot") and account.get("runAsUser", 0) > 0):
                found.append(f"{group}: may be root")
            if account.get("seccompProfile") != {"type": "RuntimeDefault"}:
                found.append(f"{group}: any system call")
            if any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC")):
                found.append(f"{group}: shares the machine's")
            inside = containers(spec)
            if thing["kind"] == "RayCluster" and group == "head":  # KubeRay puts the autoscaler beside it
                inside.append({"name": "autoscaler", **thing["spec"]["autoscalerOptions"]})
            found += [f"{group}: {line}" for container in inside for line in _rights(container)]
    return found


def _rights(container: Thing) -> list[str]:
    name, context, asked = container["name"], container.get("securityContext", {}), container.get("resources", {})
    found = []
    if context != {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}:
        found.append(f"{name} may gain rights")
    if "memory" not in asked.get("limits", {}) or asked["limits"] != asked.get("requests"):
        found.append(f"{name} may use more than it asks for")
    if "image" in container and not re.fullmatch(r"\S+:\d[\w.-]*", container["image"]):
        found.append(f"{name} has an image of no version")
    return found
