"""Pods of a rendering as podman containers: image, arguments, variables, files, user and rights of each pod
as Kubernetes would give them. The host reaches their addresses. There is no Service: clients choose a pod for
each connection, as kube-proxy would.
"""

import http.client
import ipaddress
import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from manifests import Manifest, container, grace

DEADLINE = 60.0
# Further options of `podman run`, for hosts that need some.
OPTIONS = shlex.split(os.environ.get("POD_OPTIONS", ""))
# The last number of the address of a component's first pod.
PLACES = {"redis": 10, "authd": 20, "ftpd": 40, "relay": 60}


class Failed(Exception):
    """What was expected did not happen."""


def podman(*arguments: str, text: str | None = None, limit: float = 120) -> str:
    command = ["podman", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise Failed(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def eventually(what: str, condition, limit: float = DEADLINE):
    """The first value of `condition` that is true, within `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"after {limit:.0f} s: {what}")
        time.sleep(0.2)


def write_as_kubelet(folder: Path, files: dict[str, str]) -> None:
    """Files are links through `..data`, which one rename changes."""
    version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    version.chmod(0o755)
    for name, text in files.items():
        (version / name).write_text(text, encoding="utf-8")
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.replace(folder / "..data")


# Where each component shows its metrics and health.
ADMIN_PORTS = {"ftpd": 9121, "relay": 9122, "authd": 5160}


class Pod:
    """A running pod."""

    def __init__(self, component: str, number: int, address: str, name: str, identity: str):
        self.component, self.number, self.address, self.name, self.identity = (
            component,
            number,
            address,
            name,
            identity,
        )

    def status(self, path: str) -> int | None:
        """The HTTP status of a probe, or None if nothing answers."""
        connection = http.client.HTTPConnection(self.address, ADMIN_PORTS[self.component], timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of all series whose name and labels begin as given."""
        connection = http.client.HTTPConnection(self.address, ADMIN_PORTS[self.component], timeout=5)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def log(self) -> str:
        return subprocess.run(
            ["podman", "logs", self.identity], capture_output=True, text=True, timeout=60, check=False
        ).stderr


class Pods:
    """The pods of a rendering. A context: its end removes the containers, the network and the files."""

    def __init__(self, manifest: Manifest, images: dict[str, str], secrets: dict[str, dict[str, str]]):
        """`secrets` has the files of Secrets that are not in the rendering, or that replace those in it."""
        self.manifest, self.images, self.secrets = manifest, images, secrets
        self.namespace = manifest.workloads()["ftpd"]["metadata"]["namespace"]
        self.running: dict[tuple[str, int], Pod] = {}
        self.containers: list[str] = []
        # The folders that show a Secret, by its name.
        self.shown: dict[str, list[Path]] = {}

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="distributed-ftp-pods-")
        self.network = f"distributed-ftp-pods-{os.getpid()}"
        podman("network", "create", self.network)
        (network,) = json.loads(podman("network", "inspect", self.network))
        self.subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
        self.files = self.directory("files", 2121)
        return self

    def __exit__(self, *_) -> None:
        for identity in self.containers:
            subprocess.run(
                ["podman", "rm", "--force", "--time", "0", identity], capture_output=True, check=False
            )
        subprocess.run(["podman", "network", "rm", "--force", self.network], capture_output=True, check=False)
        self.folder.cleanup()

    def directory(self, name: str, owner: int) -> Path:
        path = Path(self.folder.name) / name
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, owner, owner)
        # The owner of the temporary directory is root; the pods' users pass through it.
        os.chmod(self.folder.name, 0o755)
        return path

    def address(self, component: str, number: int) -> str:
        return str(self.subnet.network_address + PLACES[component] + number)

    def names(self) -> dict[str, str]:
        """The names that the cluster's DNS would have."""
        found = {}
        for component, workload in self.manifest.workloads().items():
            name, service = workload["metadata"]["name"], workload["spec"].get("serviceName")
            for number in range(workload["spec"].get("replicas", 1)):
                if service:
                    pod = f"{name}-{number}.{service}.{self.namespace}.svc"
                    found[pod] = self.address(component, number)
            found[f"{name}.{self.namespace}.svc"] = self.address(component, 0)
        # The Redis elsewhere of the examples.
        return found | {"redis.example.com": self.address("redis", 0)}

    def contents(self, source: dict) -> dict[str, str]:
        """The files of a Secret or ConfigMap of the rendering."""
        if "configMap" in source:
            return self.manifest.find("ConfigMap", source["configMap"]["name"])["data"]
        name = source["secret"]["secretName"]
        if name in self.secrets:
            return self.secrets[name]
        secret = self.manifest.find("Secret", name)
        # The rendering has the same text in place of all generated values; tokens must differ.
        generated = {key: f"generated-{key}" for key in secret.get("data", {})}
        chosen = {item["key"] for item in source["secret"].get("items", [])}
        files = generated | secret.get("stringData", {})
        return {key: text for key, text in files.items() if not chosen or key in chosen}

    def volumes(self, component: str, template: dict, pod: str) -> list[str]:
        """The options for the pod's mounts."""
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        options = []
        for mount in container(template)["volumeMounts"]:
            source, path = volumes.get(mount["name"], {}), mount["mountPath"]
            if "configMap" in source or "secret" in source:
                folder = self.directory(f"{pod}/{mount['name']}", 0)
                write_as_kubelet(folder, self.contents(source))
                if "secret" in source:
                    self.shown.setdefault(source["secret"]["secretName"], []).append(folder)
                outside = (folder / mount["subPath"]).resolve() if "subPath" in mount else folder
                options += ["--volume", f"{outside}:{path}:ro"]
            elif "emptyDir" in source:
                options += ["--tmpfs", f"{path}:rw,mode=1777"]
            elif "persistentVolumeClaim" in source or "nfs" in source:
                options += ["--volume", f"{self.files}:{path}"]
            else:
                own = self.directory(f"{pod}-{mount['name']}", spec["securityContext"]["runAsUser"])
                options += ["--volume", f"{own}:{path}"]
        return options

    def variables(self, template: dict, pod: str, address: str) -> list[str]:
        fields = {"metadata.name": pod, "status.podIP": address, "status.hostIP": address}
        options = []
        for entry in container(template).get("env", []):
            source = entry.get("valueFrom", {})
            if "fieldRef" in source:
                value = fields[source["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in source:
                value = f"generated-{source['secretKeyRef']['key']}"
            else:
                value = entry["value"]
            options += ["--env", f"{entry['name']}={value}"]
        return options

    def start(self, component: str, number: int = 0) -> Pod:
        workload = self.manifest.workloads()[component]
        template = workload["spec"]["template"]
        security = template["spec"]["securityContext"]
        pod, address = f"{workload['metadata']['name']}-{number}", self.address(component, number)
        user = f"{security['runAsUser']}:{security['runAsGroup']}"
        one = container(template)
        options = [
            "--detach", "--hostname", pod, "--network", self.network, "--ip", address, "--no-healthcheck",
            "--user", user, "--group-add", str(security["fsGroup"]), "--read-only", "--read-only-tmpfs=false",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--stop-timeout", str(grace(template)),
        ]  # fmt: skip
        for sysctl in security.get("sysctls", []):
            options += ["--sysctl", f"{sysctl['name']}={sysctl['value']}"]
        for name, target in self.names().items():
            options += ["--add-host", f"{name}:{target}"]
        options += self.volumes(component, template, pod) + self.variables(template, pod, address)
        command = one.get("command", [])
        if command:
            options += ["--entrypoint", json.dumps(command)]
        identity = podman("run", *OPTIONS, *options, self.images[component], *one.get("args", []))
        self.containers.append(identity)
        started = self.running[component, number] = Pod(component, number, address, pod, identity)
        return started

    def of(self, component: str) -> list[Pod]:
        return [pod for (name, _), pod in sorted(self.running.items()) if name == component]

    def nodes(self) -> list[Pod]:
        return self.of("ftpd")

    def doors(self) -> list[Pod]:
        """The pods behind the Service for clients."""
        return self.of("relay") or self.nodes()

    def change_secret(self, name: str, files: dict[str, str]) -> None:
        self.secrets[name] = files
        for folder in self.shown[name]:
            write_as_kubelet(folder, files)

    def wait_until_ready(self, pod: Pod) -> None:
        try:
            eventually(f"{pod.name} is not ready", lambda: pod.status("/readyz") == 200)
        except Failed as failure:
            raise Failed(f"{failure}:\n{pod.log()[-3000:]}") from failure

    def stop(self, pod: Pod) -> None:
        """Ends the pod as the kubelet does, by SIGTERM. It must end by itself, with exit status 0."""
        self.forget(pod)
        # Not `podman stop`, which keeps others from ending the container meanwhile.
        podman("kill", "--signal", "TERM", pod.identity)

        def state() -> str:
            return podman("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", pod.identity)

        eventually(f"{pod.name} does not end", lambda: state().startswith("exited"))
        if state() != "exited 0":
            raise Failed(f"{pod.name} ended with {state()}:\n{pod.log()[-3000:]}")

    def kill(self, pod: Pod) -> None:
        self.forget(pod)
        podman("kill", "--signal", "KILL", pod.identity)

    def forget(self, pod: Pod) -> None:
        """As the Service does with a pod that is not ready."""
        self.running.pop((pod.component, pod.number), None)
