"""What Ray's autoscaler may start: whether a cluster grows, and how far."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import yaml

MONITORS = ("autoscaler/v2/monitor.py", "autoscaler/_private/monitor.py")  # scripts of Ray's two autoscalers
CONFIG, GCS = "--autoscaling-config=", "--gcs-address="
UNKNOWN = float("inf")  # a resource that a node type does not state


def node_types(address: str) -> list[tuple[float, float, int]] | None:
    """(CPUs, GPUs, most machines) of each node type of the autoscaler of the cluster at an address (host:port).

    None unless that autoscaler runs on this machine with a file that this user may read, or this is a head of KubeRay:
    its configuration is nowhere else, and Ray does not hand it out. Raises OSError when Kubernetes does not answer.
    """
    if os.environ.get("RAY_NODE_TYPE_NAME") == "headgroup" and "RAY_enable_autoscaler_v2" in os.environ:
        return _types(_kuberay_config(os.environ["RAY_CLUSTER_NAME"], os.environ["RAY_CLUSTER_NAMESPACE"]))
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith(MONITORS) for word in words) and GCS + address in words:
            files = [Path(word.removeprefix(CONFIG)).expanduser() for word in words if word.startswith(CONFIG)]
            readable = [file for file in files if os.access(file, os.R_OK)]
            return _types(yaml.safe_load(readable[0].read_text(encoding="utf-8"))) if readable else None
    return None


def is_there() -> bool:
    """Whether an autoscaler has reported to the connected cluster, wherever it runs."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get("__autoscaling_status"):  # the older one writes its report there
        return True
    reported = get_cluster_status(ray.get_runtime_context().gcs_address).stats.autoscaler_version
    return int(reported or 0) > 0


@lru_cache  # asked for every few seconds; later changes of the RayCluster count for the next command
def _kuberay_config(name: str, namespace: str) -> dict[str, Any]:
    """What KubeRay's autoscaler makes of a RayCluster, by the same function, in the form of a cluster.yaml.

    The autoscaler runs in another container of this pod. Both have the account that may read the RayCluster.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    return _derive_autoscaling_config_from_ray_cr(KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}"))


def _types(config: dict[str, Any]) -> list[tuple[float, float, int]]:
    """Node types of a cluster.yaml, without the head's. A type that states no CPUs may have any number."""
    left, found = config.get("max_workers", 2), []
    for name, kind in config["available_node_types"].items():
        if name == config["head_node_type"]:
            continue
        has = kind.get("resources") or {}
        gpus = has.get("GPU", 0.0 if "CPU" in has else UNKNOWN)
        found.append((float(has.get("CPU", UNKNOWN)), float(gpus), min(kind.get("max_workers", left), left)))
    return found
