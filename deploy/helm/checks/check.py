#!/usr/bin/env python3
"""Checks the invariants of the committed renderings of the chart.

check.py                    checks all of them; exit status 1 if one is broken
X
"""

import sys
from pathlib import Path

import network  # noqa: F401  its invariant is registered
from invariants import INVARIANTS
from manifests import DAEMONS, Manifest, container, renderings


def violations(manifest: Manifest) -> list[str]:
    return [f"{check.__name__}: {text}" for check in INVARIANTS for text in check(manifest)]


def write_settings(manifest: Manifest, folder: Path) -> None:
    """Writes files and variables as the pods get them, with paths below `folder` and invented values."""
    secrets = folder / "secrets"
    secrets.mkdir(parents=True)
    for number, name in enumerate(("node-token", "admin-token", "redis-password")):
        (secrets / name).write_text(f"secret {number}", encoding="utf-8")
    (folder / "users.json").write_text("{}", encoding="utf-8")
    for secret in manifest.of_kind("Secret"):
        if users := secret.get("stringData", {}).get("users.json"):
            (folder / "users.json").write_text(users, encoding="utf-8")
    given = {"metadata.name": "ftp-ftpd-0", "status.podIP": "10.244.0.7", "status.hostIP": "10.0.0.7"}
    for component, pod in manifest.daemons().items():
        daemon, file, _ = DAEMONS[component]
        config = next(c["data"][file] for c in manifest.of_kind("ConfigMap") if file in c["data"])
        config = config.replace("/run/secrets/distributed-ftp", str(secrets))
        config = config.replace("/etc/distributed-ftp/users", str(folder))
        (folder / file).write_text(config, encoding="utf-8")
        lines = []
        for entry in container(pod).get("env", []):
            field = entry.get("valueFrom", {}).get("fieldRef")
            of_secret = "redis://:secret@redis.example.com"
            value = given[field["fieldPath"]] if field else entry.get("value", of_secret)
            lines.append(f"{entry['name']}={value}\n")
        (folder / f"{daemon}.env").write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str]) -> int:
    manifests = renderings()
    broken = 0
    for manifest in manifests:
        for text in violations(manifest):
            print(f"{manifest.name}: {text}", file=sys.stderr)
            broken += 1
    if arguments[:1] == ["--settings"]:
        for manifest in manifests:
            write_settings(manifest, Path(arguments[1]) / manifest.name)
    print(f"{len(manifests)} renderings, {len(INVARIANTS)} invariants, {broken} violations")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
