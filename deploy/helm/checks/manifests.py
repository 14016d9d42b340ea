"""Rendered objects of Kubernetes, and the settings that they give to the daemons."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "deploy/helm/distributed-ftp"
GOLDEN = REPOSITORY / "deploy/helm/golden"
PLAIN = REPOSITORY / "deploy/kubernetes/distributed-ftp.yaml"
NAMESPACE = "distributed-ftp"

# The daemon of each component, its configuration file, and the prefix of its environment variables.
DAEMONS = {
    "ftpd": ("ftpd", "ftpd.toml", "FTPD_"),
    "relay": ("ftp-relay", "ftp-relay.toml", "FTP_RELAY_"),
    "authd": ("authd", "authd.toml", "AUTHD_"),
}
COMPONENT = "app.kubernetes.io/component"
WORKLOADS = ("StatefulSet", "Deployment")
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> float:
    """A duration of a setting in seconds."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)", duration).groups()
    return int(number) * UNITS[unit]


def rows_of_page(page: str) -> dict[str, dict[str, str]]:
    """The first column of each daemon's tables in docs/settings.md or docs/metrics.md, with its third."""
    tables: dict[str, dict[str, str]] = {}
    daemon = ""
    for line in (REPOSITORY / "docs" / page).read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(.+)`", line):
            daemon = heading[1]
        elif row := re.match(r"\| `([a-z0-9_]+)` \| (.*?) \| (.*?) \|", line):
            tables.setdefault(daemon, {})[row[1]] = row[3].strip("`")
    return tables


@dataclass
class Manifest:
    """All objects of one rendering."""

    name: str
    objects: list[dict]
    # Names of Secrets and claims that the values expect to exist.
    external: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path, values: Path) -> "Manifest":
        objects = [o for o in yaml.safe_load_all(path.read_text(encoding="utf-8")) if o]
        return cls(path.name, objects, external_names(yaml.safe_load(values.read_text(encoding="utf-8"))))

    def of_kind(self, *kinds: str) -> list[dict]:
        return [o for o in self.objects if o["kind"] in kinds]

    def find(self, kind: str, name: str) -> dict | None:
        return next((o for o in self.of_kind(kind) if o["metadata"]["name"] == name), None)

    def workloads(self) -> dict[str, dict]:
        """The workload of each component."""
        return {o["metadata"]["labels"][COMPONENT]: o for o in self.of_kind(*WORKLOADS)}

    def pods(self) -> dict[str, dict]:
        """The pod template of each component."""
        return {name: workload["spec"]["template"] for name, workload in self.workloads().items()}

    def daemons(self) -> dict[str, dict]:
        """The pod templates of our own programs."""
        return {name: pod for name, pod in self.pods().items() if name in DAEMONS}

    def settings(self, component: str) -> dict:
        """The configuration file in the ConfigMap that the component's pod mounts."""
        file = DAEMONS[component][1]
        for volume in self.pods()[component]["spec"]["volumes"]:
            config = self.find("ConfigMap", volume.get("configMap", {}).get("name", ""))
            if config and file in config["data"]:
                return tomllib.loads(config["data"][file])
        raise LookupError(f"{component} has no {file}")

    def passive_range(self) -> tuple[int, int]:
        settings = self.settings("ftpd")
        return settings["passive_port_min"], settings["passive_port_max"]

    def replicas(self) -> int:
        """The largest number of nodes."""
        for scaler in self.of_kind("HorizontalPodAutoscaler"):
            return scaler["spec"]["maxReplicas"]
        for scaler in self.of_kind("ScaledObject"):
            return scaler["spec"]["maxReplicaCount"]
        return self.workloads()["ftpd"]["spec"]["replicas"]


def external_names(values: dict) -> set[str]:
    """Names of Secrets and claims in values that name existing ones."""
    found = set()
    paths = [
        ("storage", "existingClaim"),
        ("secrets", "existingSecret"),
        ("tls", "existingSecret"),
        ("authd", "existingUsersSecret"),
        ("redis", "external", "urlSecret", "name"),
        ("redis", "external", "filesSecret"),
    ]
    for path in paths:
        value = values
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if value:
            found.add(value)
    return found


def renderings() -> list[Manifest]:
    """The committed renderings, each with its values. The plain manifest is one of them."""
    values = sorted((CHART / "ci").glob("*-values.yaml"))
    return [Manifest.read(rendering_of(file), file) for file in values]


def rendering_of(values: Path) -> Path:
    name = values.name.removesuffix("-values.yaml")
    return PLAIN if name == "plain" else GOLDEN / f"{name}.yaml"


def container(pod: dict) -> dict:
    return pod["spec"]["containers"][0]


def grace(pod: dict) -> int:
    return pod["spec"]["terminationGracePeriodSeconds"]


def pre_stop(pod: dict) -> int:
    return container(pod).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)


def ports(pod: dict) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(pod).get("ports", [])}


def matches(selector: dict, labels: dict) -> bool:
    """True if a label selector that names something selects these labels."""
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())
