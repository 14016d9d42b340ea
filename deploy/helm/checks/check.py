#!/usr/bin/env python3
"""Checks the invariants of the committed renderings of the chart.

check.py                    checks all of them; exit status 1 if one is broken
check.py --settings FOLDER  also writes what each rendering gives to the daemons:
                            FOLDER/RENDERING/{ftpd,ftp-relay,authd}.toml and users.json
"""

import sys
from pathlib import Path

import network  # noqa: F401  its invariant is registered
from invariants import INVARIANTS
from manifests import DAEMONS, Manifest, renderings


def violations(manifest: Manifest) -> list[str]:
    return [f"{check.__name__}: {text}" for check in INVARIANTS for text in check(manifest)]


def write_settings(manifest: Manifest, folder: Path) -> None:
    folder.mkdir(parents=True)
    for config in manifest.of_kind("ConfigMap"):
        for _, file, _ in DAEMONS.values():
            if file in config["data"]:
                (folder / file).write_text(config["data"][file], encoding="utf-8")
    for secret in manifest.of_kind("Secret"):
        if users := secret.get("stringData", {}).get("users.json"):
            (folder / "users.json").write_text(users, encoding="utf-8")


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
