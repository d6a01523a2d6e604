"""How far KubeRay lets a cluster grow: asked of an API server, with the RayCluster of deploy/kubernetes."""

import datetime
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from helpers.manifests import compose

from gat_sweep import cluster
from gat_sweep.errors import UserError

ROOT = Path(__file__).parents[1]
PATH = "/apis/ray.io/v1/namespaces/gat-sweep/rayclusters/gat-sweep"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files with a certificate for 127.0.0.1, signed by itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return folder / "cert.pem", folder / "key.pem"


class Api(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        (found,) = [thing for thing in compose(ROOT / "deploy" / "kubernetes") if thing["kind"] == "RayCluster"]
        self.send_response(200 if self.path == PATH else 403)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode() if self.path == PATH else b"{}")

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The environment of a head of KubeRay, with an API server that knows the RayCluster; yields what it is asked."""
    cert, key = certificate(tmp_path)
    asked: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Ours", (Api,), {"asked": asked}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {
        "RAY_NODE_TYPE_NAME": "headgroup",
        "RAY_enable_autoscaler_v2": "true",
        "RAY_CLUSTER_NAME": "gat-sweep",
        "RAY_CLUSTER_NAMESPACE": "gat-sweep",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
        "RAY_KUBERAY_CA_CERT_PATH": str(cert),
        # In place of the token of a service account, which Ray reads from a place of the system.
        "RAY_KUBERAY_CLIENT_CERT_PATH": str(cert),
        "RAY_KUBERAY_CLIENT_KEY_PATH": str(key),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(times: int = 1) -> "subprocess.CompletedProcess[str]":
    """In a Python of its own: Ray reads the environment when it is imported."""
    code = f"from gat_sweep.autoscaler import node_types\nfor _ in range({times}): print(node_types('10.0.0.1:6379'))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_limits_are_those_of_the_raycluster(head: list[str]) -> None:
    done = ask(times=2)
    assert done.stdout.splitlines() == ["[(40.0, 4.0, 4)]"] * 2, done.stderr
    assert head == [PATH]  # once: the live table looks every few seconds


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_NODE_TYPE_NAME", "gpu"), ("RAY_enable_autoscaler_v2", None), ("RAY_NODE_TYPE_NAME", None)]
)
def test_elsewhere_kubernetes_is_not_asked(
    head: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    """On a worker, on a head that does not grow, and on a machine without KubeRay."""
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    assert ask().stdout == "None\n" and head == []


def test_a_refusal_is_one_line(head: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an OSError, at the first answer; the command says what it asked for and what must be allowed."""
    monkeypatch.setenv("RAY_CLUSTER_NAME", "other")
    done = ask()
    assert done.returncode == 1 and "403 Client Error" in done.stderr.splitlines()[-1]
    assert head == [PATH.removesuffix("gat-sweep") + "other"]

    def refuse(address: str) -> None:
        raise PermissionError("403 Client Error: Forbidden for url: https://10.0.0.1/apis")

    monkeypatch.setattr("ray.cluster_resources", lambda: {})
    monkeypatch.setattr(cluster, "nodes", list)
    monkeypatch.setattr("ray._private.state.available_resources_per_node", dict)
    monkeypatch.setattr(cluster.autoscaler, "node_types", refuse)
    with pytest.raises(UserError, match=r"^Kubernetes does not say how far .*403 .*; the service account of the head"):
        cluster.look("10.0.0.1:6379")
