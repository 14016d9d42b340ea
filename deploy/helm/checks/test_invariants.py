"""Each invariant can fail: a rendering with one fault breaks it, and the message names the fault."""

import copy
import pathlib
import tempfile
import unittest

import invariants
from check import violations
from invariants import INVARIANTS
from manifests import Manifest, container, renderings

RENDERINGS = {manifest.name.removesuffix(".yaml"): manifest for manifest in renderings()}


def pod(manifest: Manifest, component: str) -> dict:
    return manifest.pods()[component]


def replace(manifest: Manifest, file: str, old: str, new: str) -> None:
    """Changes a configuration file."""
    for config in manifest.of_kind("ConfigMap"):
        if file in config["data"]:
            assert old in config["data"][file], old
            config["data"][file] = config["data"][file].replace(old, new)


def policy(manifest: Manifest, component: str) -> dict:
    return next(p for p in manifest.of_kind("NetworkPolicy") if p["metadata"]["name"].endswith(component))[
        "spec"
    ]


def clients(manifest: Manifest) -> dict:
    return next(s for s in manifest.of_kind("Service") if s["metadata"]["name"].endswith("-clients"))["spec"]


def drop(manifest: Manifest, kind: str, name: str = "") -> None:
    manifest.objects.remove(next(o for o in manifest.of_kind(kind) if o["metadata"]["name"].endswith(name)))


def behavior(manifest: Manifest, kind: str) -> dict:
    spec = manifest.of_kind(kind)[0]["spec"]
    return spec.get("behavior") or spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]


# The invariant, a rendering, the fault, and a part of the message.
FAULTS = [
    (
        "container_ports_are_those_of_the_settings",
        "minimal",
        lambda m: replace(m, "ftpd.toml", "passive_port_max = 50029", "passive_port_max = 50030"),
        "50030",
    ),
    (
        "container_ports_are_those_of_the_settings",
        "relay",
        lambda m: replace(m, "ftp-relay.toml", "control_port = 2121", "control_port = 2122"),
        "relay",
    ),
    (
        "services_lead_to_ports_of_pods",
        "minimal",
        lambda m: clients(m)["ports"][0].update(targetPort="ftp"),
        "port ftp",
    ),
    (
        "services_lead_to_ports_of_pods",
        "minimal",
        lambda m: clients(m)["selector"].update({"app.kubernetes.io/component": "node"}),
        "selects 0",
    ),
    (
        "clients_reach_every_passive_port_under_its_own_number",
        "minimal",
        lambda m: clients(m)["ports"].pop(),
        "50029",
    ),
    (
        "clients_reach_every_passive_port_under_its_own_number",
        "nodeport",
        lambda m: clients(m)["ports"][5].update(nodePort=32000),
        "32000",
    ),
    (
        "clients_reach_every_passive_port_under_its_own_number",
        "hostports",
        lambda m: container(pod(m, "ftpd"))["ports"][4].pop("hostPort"),
        "hosts lack",
    ),
    (
        "clients_reach_every_passive_port_under_its_own_number",
        "cloud",
        lambda m: clients(m)["ports"].pop(1),
        "implicit",
    ),
    (
        "clients_keep_their_addresses",
        "minimal",
        lambda m: clients(m).update(externalTrafficPolicy="Cluster"),
        "hides",
    ),
    (
        "selectors_select_pods",
        "minimal",
        lambda m: m.of_kind("PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"].clear(),
        "PodDisruption",
    ),
    (
        "selectors_select_pods",
        "cloud",
        lambda m: (
            m.workloads()["ftpd"]["spec"]["template"]["metadata"]["labels"].clear()
            or m.workloads()["ftpd"]["spec"]["template"]["metadata"]["labels"].update({"a": "b"})
        ),
        "own pods",
    ),
    ("named_objects_exist", "minimal", lambda m: drop(m, "Secret", "-users"), "release-users"),
    ("named_objects_exist", "minimal", lambda m: drop(m, "ServiceAccount"), "ServiceAccount"),
    ("named_objects_exist", "minimal", lambda m: m.external.clear(), "ftp-files"),
    (
        "named_objects_exist",
        "minimal",
        lambda m: m.find("Secret", "release")["data"].pop("node-token"),
        "node-token",
    ),
    (
        "named_objects_exist",
        "minimal",
        lambda m: container(pod(m, "ftpd"))["volumeMounts"][0].update(name="data"),
        "volume data",
    ),
    ("named_objects_exist", "minimal", lambda m: drop(m, "Service", "-ftpd"), "no Service"),
    ("named_objects_exist", "cloud", lambda m: drop(m, "Certificate"), "release-tls"),
    ("named_objects_exist", "cloud", lambda m: drop(m, "PersistentVolumeClaim"), "release-files"),
    (
        "paths_in_settings_are_mounted",
        "cloud",
        lambda m: replace(m, "ftpd.toml", "/etc/distributed-ftp/tls/tls.key", "/etc/tls.key"),
        "nothing is mounted",
    ),
    (
        "paths_in_settings_are_mounted",
        "minimal",
        lambda m: replace(m, "ftpd.toml", "node-token", "admin-token"),
        "does not contain",
    ),
    (
        "probes_hit_ports_that_exist",
        "minimal",
        lambda m: container(pod(m, "authd"))["readinessProbe"]["httpGet"].update(port="admin"),
        "port admin",
    ),
    (
        "probes_hit_ports_that_exist",
        "minimal",
        lambda m: container(pod(m, "ftpd"))["livenessProbe"]["httpGet"].update(path="/readyz"),
        "livenessProbe",
    ),
    (
        "probes_hit_ports_that_exist",
        "relay",
        lambda m: container(pod(m, "relay")).pop("readinessProbe"),
        "no readinessProbe",
    ),
    (
        "pods_have_longer_to_stop_than_their_drain_takes",
        "minimal",
        lambda m: replace(m, "ftpd.toml", 'drain_timeout = "5m"', 'drain_timeout = "6m"'),
        "335 s",
    ),
    (
        "pods_have_longer_to_stop_than_their_drain_takes",
        "minimal",
        lambda m: container(pod(m, "ftpd")).pop("lifecycle"),
        "SIGTERM",
    ),
    (
        "pods_keep_to_the_restricted_profile",
        "minimal",
        lambda m: container(pod(m, "ftpd"))["securityContext"]["capabilities"].update(
            add=["NET_BIND_SERVICE"]
        ),
        "capabilities",
    ),
    (
        "pods_keep_to_the_restricted_profile",
        "minimal",
        lambda m: pod(m, "authd")["spec"].pop("enableServiceLinks"),
        "enableServiceLinks",
    ),
    (
        "pods_keep_to_the_restricted_profile",
        "minimal",
        lambda m: pod(m, "ftpd")["spec"].update(hostNetwork=True),
        "hostNetwork",
    ),
    (
        "pods_keep_to_the_restricted_profile",
        "minimal",
        lambda m: pod(m, "ftpd")["spec"]["securityContext"]["sysctls"].clear(),
        "reserves",
    ),
    (
        "every_setting_exists",
        "minimal",
        lambda m: replace(m, "ftpd.toml", "drain_timeout", "drain_limit"),
        "drain_limit",
    ),
    (
        "every_setting_exists",
        "cloud",
        lambda m: container(pod(m, "authd"))["env"][1].update(name="AUTHD_REDIS"),
        "setting redis of authd",
    ),
    (
        "every_setting_exists",
        "cloud",
        lambda m: container(pod(m, "authd"))["env"][1].update(name="FTPD_REDIS_URL"),
        "not a variable",
    ),
    (
        "every_setting_exists",
        "relay",
        lambda m: container(pod(m, "relay"))["env"][0].update(value="127.0.0.1:9122"),
        "in the file",
    ),
    (
        "daemons_agree",
        "relay",
        lambda m: replace(m, "ftp-relay.toml", "passive_port_min = 50000", "passive_port_min = 50001"),
        "50001",
    ),
    (
        "daemons_agree",
        "relay",
        lambda m: replace(m, "ftp-relay.toml", 'stall_timeout = "660s"', 'stall_timeout = "300s"'),
        "stall_timeout",
    ),
    (
        "daemons_agree",
        "relay",
        lambda m: replace(m, "ftpd.toml", 'trusted_balancers = ["10.244.0.0/16"]', ""),
        "PROXY",
    ),
    ("daemons_agree", "relay", lambda m: replace(m, "authd.toml", "production", "test"), "redis_prefix"),
    ("daemons_agree", "minimal", lambda m: m.workloads()["authd"]["spec"].update(replicas=3), "authd_urls"),
    (
        "every_node_can_have_a_block",
        "minimal",
        lambda m: m.workloads()["ftpd"]["spec"].update(replicas=16),
        "15 blocks",
    ),
    (
        "every_node_can_have_a_block",
        "relay",
        lambda m: m.of_kind("ScaledObject")[0]["spec"].update(maxReplicaCount=20),
        "20 nodes",
    ),
    (
        "memory_suffices_when_all_limits_are_reached",
        "minimal",
        lambda m: replace(m, "ftpd.toml", "max_transfers = 200", "max_transfers = 2000"),
        "8192Mi",
    ),
    (
        "autoscalers_use_a_metric_and_drain",
        "cloud",
        lambda m: m.of_kind("HorizontalPodAutoscaler")[0]["spec"]["metrics"][0]["pods"]["metric"].update(
            name="ftp_busy"
        ),
        "ftp_busy",
    ),
    (
        "autoscalers_use_a_metric_and_drain",
        "cloud",
        lambda m: behavior(m, "HorizontalPodAutoscaler")["scaleDown"]["policies"][0].update(periodSeconds=60),
        "faster",
    ),
    (
        "autoscalers_use_a_metric_and_drain",
        "relay",
        lambda m: behavior(m, "ScaledObject")["scaleDown"].update(selectPolicy="Max"),
        "faster",
    ),
    (
        "autoscalers_use_a_metric_and_drain",
        "relay",
        lambda m: m.of_kind("ScaledObject")[0]["spec"]["scaleTargetRef"].update(name="release-authd"),
        "not the nodes",
    ),
    (
        "autoscalers_use_a_metric_and_drain",
        "relay",
        lambda m: m.workloads()["ftpd"]["spec"].update(replicas=3),
        "set the number",
    ),
    (
        "monitoring_finds_the_pods",
        "cloud",
        lambda m: m.of_kind("PodMonitor")[0]["spec"]["podMetricsEndpoints"][0].update(port="metrics"),
        "port metrics",
    ),
    (
        "monitoring_finds_the_pods",
        "cloud",
        lambda m: m.of_kind("PodMonitor")[0]["spec"]["podMetricsEndpoints"][0]["relabelings"].pop(0),
        "names its job",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "minimal",
        lambda m: policy(m, "-authd")["ingress"][0]["from"].pop(0),
        "ftpd cannot connect to authd:5160",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "minimal",
        lambda m: policy(m, "-redis")["ingress"][0].pop("from"),
        "client can connect to redis:6379",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "cloud",
        lambda m: policy(m, "-ftpd")["ingress"][0]["ports"][-1].update(port=2000),
        "client can connect to ftpd:9121",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "cloud",
        lambda m: policy(m, "-ftpd")["ingress"].pop(1),
        "ftpd cannot connect to ftpd:50000",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "relay",
        lambda m: policy(m, "-relay")["egress"].pop(),
        "relay cannot connect to ftpd:2121",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "relay",
        lambda m: policy(m, "-ftpd")["ingress"][0].pop("from"),
        "client can connect to ftpd:2121",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "minimal",
        lambda m: policy(m, "-authd")["egress"].pop(0),
        "authd cannot resolve names",
    ),
    (
        "policies_admit_the_table_of_connections_and_nothing_else",
        "minimal",
        lambda m: drop(m, "NetworkPolicy", "-redis"),
        "covers redis",
    ),
]


class Invariants(unittest.TestCase):
    def test_the_renderings_break_none(self):
        for name, manifest in RENDERINGS.items():
            self.assertEqual(violations(manifest), [], name)

    def test_each_fault_breaks_its_invariant_and_the_message_names_it(self):
        for name, rendering, fault, part in FAULTS:
            with self.subTest(invariant=name, part=part):
                manifest = copy.deepcopy(RENDERINGS[rendering])
                fault(manifest)
                check = next(check for check in INVARIANTS if check.__name__ == name)
                found = list(check(manifest))
                self.assertTrue(any(part in text for text in found), f"{part!r} is not in {found}")

    def test_a_copy_of_the_rules_that_is_old_is_found(self):
        check = next(check for check in INVARIANTS if check.__name__ == "copies_in_the_chart_are_current")
        # The real files stay as they are: the check reads from a chart whose files are empty.
        with tempfile.TemporaryDirectory() as folder:
            chart = pathlib.Path(folder)
            (chart / "files").mkdir()
            for name in ("rules.yaml", "dashboard.json"):
                (chart / "files" / name).write_text("old")
            (chart / "Chart.yaml").write_text('appVersion: "0.0.1"')
            real, invariants.CHART = invariants.CHART, chart
            try:
                found = " ".join(check(RENDERINGS["minimal"]))
            finally:
                invariants.CHART = real
        for part in ("rules.yaml", "dashboard.json", "appVersion"):
            self.assertIn(part, found)

    def test_every_invariant_has_a_fault(self):
        named = {name for name, *_ in FAULTS} | {"copies_in_the_chart_are_current"}
        self.assertEqual({check.__name__ for check in INVARIANTS}, named)


if __name__ == "__main__":
    unittest.main()
