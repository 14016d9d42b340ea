"""What a release keeps at an upgrade. A server answers as the API server does, as far as helm asks it."""

import base64
import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from manifests import CHART, NAMESPACE

TOKENS = {"node-token": "kept-1", "admin-token": "kept-2", "redis-password": "kept-3"}
REPLICAS = 7


# The kinds that the chart makes by default, and where the API server has them.
KINDS = {
    "v1": {
        "secrets": "Secret",
        "services": "Service",
        "configmaps": "ConfigMap",
        "serviceaccounts": "ServiceAccount",
    },
    "apps/v1": {"statefulsets": "StatefulSet"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
}


def discovery() -> dict[str, dict]:
    groups = []
    found = {"/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}}
    for version, kinds in KINDS.items():
        group, _, number = version.rpartition("/")
        one = {"groupVersion": version, "version": number}
        if group:
            groups.append({"name": group, "versions": [one], "preferredVersion": one})
        listed = [
            {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
            for name, kind in kinds.items()
        ]
        path = f"/apis/{version}" if group else f"/api/{version}"
        found[path] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": listed,
        }
    found["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    found["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return found


def answers() -> dict[str, dict]:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in TOKENS.items()}
    owner = {"meta.helm.sh/release-name": "release", "meta.helm.sh/release-namespace": NAMESPACE}
    meta = {
        "namespace": NAMESPACE,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": owner,
    }
    return discovery() | {
        f"/api/v1/namespaces/{NAMESPACE}/secrets/release": {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": meta | {"name": "release"},
            "data": data,
        },
        f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/release-ftpd": {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": meta | {"name": "release-ftpd"},
            "spec": {"replicas": REPLICAS},
        },
    }


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = answers().get(self.path.partition("?")[0])
        body = json.dumps(
            answer or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        )
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_) -> None:
        pass


def rendering(helm: str, address: str, *values: str) -> str:
    command = [helm, "template", "release", str(CHART), "--namespace", NAMESPACE, "--dry-run=server"]
    command += ["--disable-openapi-validation"]
    command += ["--kube-apiserver", address, "--set", "storage.existingClaim=files", *values]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout if done.returncode == 0 else done.stderr


def keeps_what_exists(helm: str) -> list[str]:
    """Faults: tokens that an upgrade would change, and a number of nodes that it would set back."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        fixed = rendering(helm, address)
        scaled = rendering(helm, address, "--set", "autoscaling.type=hpa")
    finally:
        server.shutdown()
    faults = []
    for key, text in TOKENS.items():
        found = re.search(rf'^  {key}: "(.*)"$', fixed, re.MULTILINE)
        if not found or base64.b64decode(found[1]).decode() != text:
            faults.append(f"an upgrade changes {key}: {found and found[0] or fixed[-500:]}")
    for text, number in ((fixed, 3), (scaled, REPLICAS)):
        nodes = text[text.find("# A StatefulSet, because a node keeps its name") :]
        found = re.search(r"^  replicas: (\d+)$", nodes.partition("---")[0], re.MULTILINE)
        if not found or int(found[1]) != number:
            faults.append(f"an upgrade sets {found and found[0]} nodes, and not {number}")
    return faults
