#!/usr/bin/env python3
"""Renders the chart with helm and compares the committed renderings.

render.py HELM           compares; exit status 1 at a difference or an error
render.py HELM --write   writes the renderings
"""

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from live import keeps_what_exists
from manifests import CHART, NAMESPACE, PLAIN, rendering_of

# The oldest version of Kubernetes that Chart.yaml admits, and the newest that is known.
VERSIONS = ("1.30", "1.37")

# Kinds of other projects, for which there are no schemas.
FOREIGN = ("Certificate", "PodMonitor", "PrometheusRule", "ScaledObject")

PLAIN_HEADER = """\
# Distributed FTP for kubectl, without Helm: three nodes, two authd, and a Redis for trials. Written by
# `./dev test-deploy --write` from the chart in deploy/helm and ci/plain-values.yaml; do not edit it here.
# Before `kubectl apply`: docs/deployment-kubernetes.md, "Without Helm".
"""

# Values that are refused, and a part of the message.
REFUSED = [
    ({"ftpd": {"replica": 2}}, "not allowed"),
    ({"ftpd": {"replicas": 16}}, "15 blocks"),
    ({"ftpd": {"settings": {"port": 21}}}, "ftpd.settings.port: the chart computes this setting"),
    ({"ftpd": {"settings": {"drain_timeout": "5 minutes"}}}, "drain_timeout"),
    ({"ftpd": {"settings": {"drain_timeout": "30m"}}, "autoscaling": {"type": "hpa"}}, "29m or less"),
    ({"passivePorts": {"from": 50010, "to": 50000}}, "from (50010) is above to (50000)"),
    ({"passivePorts": {"from": 2100, "to": 2130}}, "contains 2121"),
    ({"service": {"type": "NodePort"}}, "within 30000-32767"),
    (
        {"service": {"type": "NodePort"}, "passivePorts": {"from": 30000, "to": 30039}},
        "service.nodePorts.control is 30021",
    ),
    ({"service": {"type": "None"}}, "clients reach no node"),
    ({"service": {"externalTrafficPolicy": "Cluster"}}, "service.trustedBalancers"),
    ({"relay": {"enabled": True}}, "relay.podNetworks"),
    (
        {
            "relay": {"enabled": True, "podNetworks": ["10.0.0.0/8"]},
            "ftpd": {"hostPorts": {"enabled": True}},
        },
        "past the relays",
    ),
    ({"storage": {"existingClaim": ""}}, "storage: set exactly one"),
    ({"storage": {"claim": {"enabled": True}}}, "storage: set exactly one"),
    (
        {"storage": {"existingClaim": "", "claim": {"enabled": True, "accessModes": ["ReadWriteOnce"]}}},
        "several nodes need ReadWriteMany",
    ),
    ({"tls": {"required": True}}, "there is no certificate"),
    ({"tls": {"certManager": {"enabled": True}}}, "set issuerRef and dnsNames"),
    (
        {
            "tls": {
                "existingSecret": "a",
                "certManager": {"enabled": True, "dnsNames": ["a"], "issuerRef": {"name": "b"}},
            }
        },
        "two certificates",
    ),
    ({"redis": {"enabled": False}}, "redis.external.url"),
    ({"authd": {"existingUsersSecret": "a", "users": {"b": {"home": "/"}}}}, "existingUsersSecret"),
    ({"externalAddress": "ftp.example.com"}, "externalAddress"),
    ({"externalAddress": "203.0.113.1", "externalAddressFromHost": True}, "choose one"),
    (
        {"autoscaling": {"type": "keda", "minReplicas": 9, "maxReplicas": 8}},
        "minReplicas is above maxReplicas",
    ),
]


def helm(program: str, *arguments: str, values: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([program, *arguments], input=values, capture_output=True, text=True, timeout=120)


def render(program: str, values: Path) -> str:
    """The objects for these values, without what differs at each rendering."""
    arguments = ("template", "release", str(CHART), "--namespace", NAMESPACE, "--values", str(values))
    done = helm(program, *arguments)
    if done.returncode:
        raise SystemExit(f"{values.name}: {done.stderr.strip()}")
    text = re.sub(
        r'^(  (?:\S+-token|redis-password): )".+"$', r'\1"Z2VuZXJhdGVk"', done.stdout, flags=re.MULTILINE
    )
    if rendering_of(values) == PLAIN:
        text = re.sub(
            r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE
        )
        text = PLAIN_HEADER + text
    return text


def compare_or_write(program: str, write: bool) -> int:
    failures = 0
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        path, text = rendering_of(values), render(program, values)
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != text:
            failures += 1
            lines = difflib.unified_diff(
                old.splitlines(), text.splitlines(), "committed", "rendered", lineterm=""
            )
            print(
                f"{path.name} is stale: run ./dev test-deploy --write",
                *list(lines)[:30],
                sep="\n",
                file=sys.stderr,
            )
    return failures


def lint(program: str) -> int:
    done = helm(program, "lint", "--strict", str(CHART), "--set", "storage.existingClaim=files")
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


def refuses(program: str) -> int:
    """Each faulty set of values is refused, with a message that names what is wrong."""
    failures = 0
    for values, part in REFUSED:
        base = {"storage": {"existingClaim": "files"}}
        text = json.dumps(merged(base, values))
        done = helm(program, "template", "release", str(CHART), "--values", "-", values=text)
        if done.returncode == 0 or part not in done.stderr:
            failures += 1
            print(f"{text}: expected {part!r}, got {done.stderr.strip() or 'a rendering'}", file=sys.stderr)
    return failures


def keeps(program: str) -> int:
    """An upgrade keeps the tokens of the cluster, and the number of nodes that an autoscaler chose."""
    faults = keeps_what_exists(program)
    for fault in faults:
        print(fault, file=sys.stderr)
    return len(faults)


def merged(base: dict, over: dict) -> dict:
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result


def validate() -> int:
    """Every object has the form that Kubernetes expects; unknown keys are errors."""
    try:
        import kubernetes_validate
    except ImportError:
        print("SKIPPED: validation by Kubernetes' schemas: there is no kubernetes-validate", file=sys.stderr)
        return 0
    # The validation itself can fail.
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}}
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(wrong, version, strict=True)
        except kubernetes_validate.ValidationError:
            continue
        raise SystemExit(f"the schemas of {version} admit an unknown key")
    failures = 0
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        for one in yaml.safe_load_all(rendering_of(values).read_text(encoding="utf-8")):
            if not one or one["kind"] in FOREIGN:
                continue
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(one, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    failures += 1
                    where = f"{rendering_of(values).name}: {one['kind']} {one['metadata']['name']}"
                    print(f"{where}: {version}: {error.message} at {list(error.path)}", file=sys.stderr)
    return failures


def main(arguments: list[str]) -> int:
    program, write = arguments[0], "--write" in arguments
    failures = (
        lint(program) + compare_or_write(program, write) + refuses(program) + keeps(program) + validate()
    )
    print(f"helm: {'renderings written, ' if write else ''}{len(REFUSED)} faulty values, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
