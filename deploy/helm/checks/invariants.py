"""What must be true of the rendered objects. Each invariant yields a message for each violation."""

import re
from collections.abc import Callable, Iterator

from manifests import (
    CHART,
    DAEMONS,
    REPOSITORY,
    WORKLOADS,
    Manifest,
    container,
    grace,
    matches,
    ports,
    pre_stop,
    rows_of_page,
    seconds,
)

Invariant = Callable[[Manifest], Iterator[str]]
INVARIANTS: list[Invariant] = []


def invariant(function: Invariant) -> Invariant:
    INVARIANTS.append(function)
    return function


def listening(manifest: Manifest, component: str) -> set[int]:
    """The ports where the daemon listens, by its settings."""
    if component == "redis":
        return {6379}
    settings = manifest.settings(component)
    if component == "authd":
        return {int(settings["listen"].rpartition(":")[2])}
    first, last = settings["passive_port_min"], settings["passive_port_max"]
    found = set(range(first, last + 1)) | {int(settings["admin_listen"].rpartition(":")[2])}
    found.add(settings["port" if component == "ftpd" else "control_port"])
    if "implicit_tls_port" in settings:
        found.add(settings["implicit_tls_port"])
    return found


def front(manifest: Manifest) -> str:
    """The component that clients reach."""
    return "relay" if "relay" in manifest.workloads() else "ftpd"


@invariant
def container_ports_are_those_of_the_settings(manifest: Manifest) -> Iterator[str]:
    for component, pod in manifest.pods().items():
        expected, found = listening(manifest, component), set(ports(pod).values())
        if expected != found:
            yield f"{component}: the settings listen on {sorted(expected)}, the container has {sorted(found)}"


@invariant
def services_lead_to_ports_of_pods(manifest: Manifest) -> Iterator[str]:
    for service in manifest.of_kind("Service"):
        name = service["metadata"]["name"]
        selected = [
            pod
            for pod in manifest.pods().values()
            if matches({"matchLabels": service["spec"]["selector"]}, pod["metadata"]["labels"])
        ]
        if len(selected) != 1:
            yield f"Service {name} selects {len(selected)} kinds of pods"
        for pod in selected:
            for port in service["spec"]["ports"]:
                known = ports(pod)
                if port["targetPort"] not in known and port["targetPort"] not in known.values():
                    yield f"Service {name}: no container has the port {port['targetPort']}"


@invariant
def clients_reach_every_passive_port_under_its_own_number(manifest: Manifest) -> Iterator[str]:
    first, last = manifest.passive_range()
    passive = set(range(first, last + 1))
    doors = [s for s in manifest.of_kind("Service") if s["spec"].get("clusterIP") != "None"]
    doors = [s for s in doors if s["metadata"]["name"].endswith("-clients")]
    pod = manifest.pods()[front(manifest)]
    on_hosts = {p["hostPort"]: p["containerPort"] for p in container(pod)["ports"] if "hostPort" in p}
    if not doors and not on_hosts:
        yield "clients reach the nodes neither by a Service nor by ports of hosts"
    if on_hosts and not passive <= {p for p, inner in on_hosts.items() if p == inner}:
        yield "the hosts lack ports of the passive range, or change their numbers"
    for service in doors:
        entries = service["spec"]["ports"]
        kept = {p["port"] for p in entries if p["port"] == p["targetPort"]}
        if not passive <= kept:
            yield f"the Service lacks or changes passive ports: {sorted(passive - kept)}"
        if service["spec"]["type"] == "NodePort":
            for port in (p for p in entries if p["port"] in passive):
                if port.get("nodePort") != port["port"] or not 30000 <= port["port"] <= 32767:
                    yield f"node port {port.get('nodePort')} stands for the passive port {port['port']}"
        named = {p["targetPort"] for p in entries}
        expected = {n for n in ports(pod) if n in ("control", "implicit")}
        if not expected <= named:
            yield f"the Service lacks the control ports {sorted(expected - named)}"


@invariant
def clients_keep_their_addresses(manifest: Manifest) -> Iterator[str]:
    trusted = manifest.settings(front(manifest)).get("trusted_balancers")
    for service in manifest.of_kind("Service"):
        policy = service["spec"].get("externalTrafficPolicy")
        if policy == "Cluster" and not trusted:
            yield f"Service {service['metadata']['name']} hides the addresses of clients"


@invariant
def selectors_select_pods(manifest: Manifest) -> Iterator[str]:
    labels = [pod["metadata"]["labels"] for pod in manifest.pods().values()]
    selectors = []
    for o in manifest.objects:
        where = f"{o['kind']} {o['metadata']['name']}"
        if o["kind"] in WORKLOADS:
            own = o["spec"]["template"]["metadata"]["labels"]
            spread = o["spec"]["template"]["spec"]["topologySpreadConstraints"]
            for selector in [o["spec"]["selector"], *(s["labelSelector"] for s in spread)]:
                if not matches(selector, own):
                    yield f"{where} does not select its own pods"
        elif o["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            selectors.append((where, o["spec"]["selector"]))
        elif o["kind"] == "NetworkPolicy":
            selectors.append((where, o["spec"]["podSelector"]))
            for rule in [*o["spec"]["ingress"], *o["spec"]["egress"]]:
                peers = [*rule.get("from", []), *rule.get("to", [])]
                inside = [p for p in peers if "podSelector" in p and "namespaceSelector" not in p]
                selectors += [(where, peer["podSelector"]) for peer in inside]
    for where, selector in selectors:
        if not any(matches(selector, own) for own in labels):
            yield f"{where} selects no pods: {selector}"


@invariant
def named_objects_exist(manifest: Manifest) -> Iterator[str]:
    def exists(kind: str, name: str) -> bool:
        made = {("Secret", c["spec"]["secretName"]) for c in manifest.of_kind("Certificate")}
        return manifest.find(kind, name) is not None or name in manifest.external or (kind, name) in made

    def keys_of(kind: str, name: str) -> set[str] | None:
        found = manifest.find(kind, name)
        return None if found is None else {*found.get("data", {}), *found.get("stringData", {})}

    for component, pod in manifest.pods().items():
        spec = pod["spec"]
        account = spec["serviceAccountName"]
        if account != "default" and not exists("ServiceAccount", account):
            yield f"{component}: there is no ServiceAccount {account}"
        sources = []
        for volume in spec["volumes"]:
            items = [
                item["key"] for item in volume.get("secret", volume.get("configMap", {})).get("items", [])
            ]
            if "secret" in volume:
                sources.append(("Secret", volume["secret"]["secretName"], items))
            if "configMap" in volume:
                mounts = [m for m in container(pod)["volumeMounts"] if m["name"] == volume["name"]]
                parts = [m["subPath"] for m in mounts if "subPath" in m]
                sources.append(("ConfigMap", volume["configMap"]["name"], items + parts))
            if "persistentVolumeClaim" in volume:
                sources.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], []))
        for entry in container(pod).get("env", []):
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                sources.append(("Secret", reference["name"], [reference["key"]]))
        for kind, name, keys in sources:
            if not exists(kind, name):
                yield f"{component}: there is no {kind} {name}"
            elif (known := keys_of(kind, name)) is not None and not set(keys) <= known:
                yield f"{component}: {kind} {name} lacks {sorted(set(keys) - known)}"
        volumes = {v["name"] for v in spec["volumes"]}
        volumes |= {
            c["metadata"]["name"]
            for c in manifest.workloads()[component]["spec"].get("volumeClaimTemplates", [])
        }
        for mount in container(pod)["volumeMounts"]:
            if mount["name"] not in volumes:
                yield f"{component}: there is no volume {mount['name']}"
    for workload in manifest.of_kind("StatefulSet"):
        service = manifest.find("Service", workload["spec"]["serviceName"])
        if service is None:
            yield f"there is no Service {workload['spec']['serviceName']}"


@invariant
def paths_in_settings_are_mounted(manifest: Manifest) -> Iterator[str]:
    for component, pod in manifest.daemons().items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for key, value in manifest.settings(component).items():
            for path in value if isinstance(value, list) else [value]:
                if not isinstance(path, str) or not path.startswith("/"):
                    continue
                mounts = container(pod)["volumeMounts"]
                fitting = [
                    m for m in mounts if path == m["mountPath"] or path.startswith(m["mountPath"] + "/")
                ]
                if not fitting:
                    yield f"{component}: {key} is {path}, where nothing is mounted"
                    continue
                items = volumes[fitting[0]["name"]].get("secret", {}).get("items")
                if items and path.rpartition("/")[2] not in {item["path"] for item in items}:
                    yield f"{component}: {key} is {path}, which the volume does not contain"


@invariant
def probes_hit_ports_that_exist(manifest: Manifest) -> Iterator[str]:
    paths = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for component, pod in manifest.pods().items():
        for probe, path in paths.items():
            action = container(pod).get(probe)
            if action is None:
                yield f"{component} has no {probe}"
                continue
            request = action.get("httpGet") or action.get("tcpSocket")
            if request["port"] not in ports(pod):
                yield f"{component}: {probe} asks the port {request['port']}, which does not exist"
            if component != "redis" and request.get("path") != path:
                yield f"{component}: {probe} asks {request.get('path')} instead of {path}"


@invariant
def pods_have_longer_to_stop_than_their_drain_takes(manifest: Manifest) -> Iterator[str]:
    limits = {"ftpd": "drain_timeout", "relay": "drain_timeout", "authd": "stop_timeout"}
    for component, pod in manifest.daemons().items():
        needed = pre_stop(pod) + seconds(manifest.settings(component)[limits[component]])
        if grace(pod) < needed + 10:
            yield f"{component} may take {grace(pod)} s to stop, and needs {needed} s and some more"
        if component != "authd" and pre_stop(pod) < 1:
            yield f"{component} gets SIGTERM before it has left the Service"


@invariant
def pods_keep_to_the_restricted_profile(manifest: Manifest) -> Iterator[str]:
    first, last = manifest.passive_range()
    users = {"redis": 999}
    for component, pod in manifest.pods().items():
        spec, one = pod["spec"], container(pod)
        security, own = spec["securityContext"], one["securityContext"]
        expected = {
            "runAsNonRoot": (security.get("runAsNonRoot"), True),
            "runAsUser": (security.get("runAsUser"), users.get(component, 2121)),
            "seccompProfile": (security.get("seccompProfile"), {"type": "RuntimeDefault"}),
            "capabilities": (own.get("capabilities"), {"drop": ["ALL"]}),
            "allowPrivilegeEscalation": (own.get("allowPrivilegeEscalation"), False),
            "readOnlyRootFilesystem": (own.get("readOnlyRootFilesystem"), True),
            "privileged": (own.get("privileged", False), False),
            "automountServiceAccountToken": (spec.get("automountServiceAccountToken"), False),
            # Variables of Services such as AUTHD_PORT would be settings that do not exist.
            "enableServiceLinks": (spec.get("enableServiceLinks"), False),
        }
        for name, (found, wanted) in expected.items():
            if found != wanted:
                yield f"{component}: {name} is {found}, and should be {wanted}"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(name):
                yield f"{component} uses {name}"
        if any(port < 1024 for port in ports(pod).values()):
            yield f"{component} listens below port 1024, which needs a capability"
        reserved = [s["value"] for s in security.get("sysctls", [])]
        if component in ("ftpd", "relay") and reserved != [f"{first}-{last}"]:
            yield f"{component} reserves the ports {reserved}, and the passive range is {first}-{last}"


@invariant
def every_setting_exists(manifest: Manifest) -> Iterator[str]:
    known = rows_of_page("settings.md")
    for component, pod in manifest.daemons().items():
        daemon, _, prefix = DAEMONS[component]
        given = [*manifest.settings(component)]
        for entry in container(pod).get("env", []):
            if not entry["name"].startswith(prefix):
                yield f"{component}: {entry['name']} is not a variable of {daemon}"
            key = entry["name"].removeprefix(prefix).lower()
            given.append(key)
            in_file = manifest.settings(component).get(key)
            if "value" in entry and entry["value"] != in_file:
                yield f"{component}: {entry['name']} is {entry['value']}, and {in_file} in the file"
        for key in given:
            if key not in known[daemon]:
                yield f"{component}: docs/settings.md has no setting {key} of {daemon}"


@invariant
def daemons_agree(manifest: Manifest) -> Iterator[str]:
    nodes, authd = manifest.settings("ftpd"), manifest.settings("authd")
    default = rows_of_page("settings.md")["ftpd"]
    others = {"authd": authd}
    if "relay" in manifest.workloads():
        relay = others["relay"] = manifest.settings("relay")
        for key in ("passive_port_min", "passive_port_max"):
            if relay[key] != nodes[key]:
                yield f"relay: {key} is {relay[key]}, and {nodes[key]} on the nodes"
        silent = max(seconds(nodes.get(key, default[key])) for key in ("stall_timeout", "idle_timeout"))
        if seconds(relay["stall_timeout"]) <= silent:
            yield "relay: stall_timeout is not longer than the nodes' limits"
        if seconds(relay["control_timeout"]) <= seconds(nodes["idle_timeout"]):
            yield "relay: control_timeout is not longer than the nodes' idle_timeout"
        if not nodes.get("trusted_balancers"):
            yield "the nodes do not trust the relays' PROXY headers"
    for component, settings in others.items():
        for key in (k for k in {*nodes, *settings} if k.startswith("redis_")):
            if settings.get(key) != nodes.get(key):
                yield f"{component}: {key} differs from the nodes'"
    workload = manifest.workloads()["authd"]
    name, service = workload["metadata"]["name"], workload["spec"]["serviceName"]
    port = authd["listen"].rpartition(":")[2]
    urls = [
        f"http://{name}-{number}.{service}.{workload['metadata']['namespace']}.svc:{port}"
        for number in range(workload["spec"]["replicas"])
    ]
    if nodes["authd_urls"] != urls:
        yield f"authd_urls is {nodes['authd_urls']}, and the instances are {urls}"


@invariant
def every_node_can_have_a_block(manifest: Manifest) -> Iterator[str]:
    first, last = manifest.passive_range()
    blocks = (last - first + 1) // manifest.settings("ftpd")["passive_block_ports"]
    if blocks < manifest.replicas():
        yield f"{manifest.replicas()} nodes share {blocks} blocks of passive ports"


@invariant
def memory_suffices_when_all_limits_are_reached(manifest: Manifest) -> Iterator[str]:
    settings = manifest.settings("ftpd")
    default = rows_of_page("settings.md")["ftpd"]
    limit = {
        key: int(settings.get(key, default[key]))
        for key in (
            "max_sessions",
            "max_transfers",
            "max_relayed",
            "max_file_operations",
            "max_listing_memory",
        )
    }
    needed = limit["max_sessions"] / 8 + 8 * (limit["max_transfers"] + limit["max_relayed"])
    needed += limit["max_file_operations"] + 2 * limit["max_listing_memory"] / 2**20 + 1024
    text = container(manifest.pods()["ftpd"])["resources"]["limits"]["memory"]
    if int(text.removesuffix("Mi")) < needed:
        yield f"the memory limit of a node is {text}, and its limits may need {needed:.0f} MiB"


@invariant
def autoscalers_use_a_metric_and_drain(manifest: Manifest) -> Iterator[str]:
    metrics = rows_of_page("metrics.md")["ftpd"]
    for scaler in manifest.of_kind("HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        if scaler["kind"] == "ScaledObject":
            queries = [trigger["metadata"]["query"] for trigger in spec["triggers"]]
            names = [re.search(r"[a-z]+_[a-z_]+(?=\{)", query)[0] for query in queries]
            behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        else:
            names = [metric["pods"]["metric"]["name"] for metric in spec["metrics"]]
            behavior = spec["behavior"]
        for name in names:
            if name not in metrics:
                yield f"docs/metrics.md has no metric {name} of ftpd"
        target = spec["scaleTargetRef"]
        if manifest.find(target["kind"], target["name"]) is not manifest.workloads()["ftpd"]:
            yield f"{scaler['kind']} scales {target['name']}, which are not the nodes"
        if "replicas" in manifest.workloads()["ftpd"]["spec"]:
            yield "each upgrade would set the number of nodes back"
        down = behavior["scaleDown"]
        for policy in down["policies"]:
            slow = policy["type"] == "Pods" and policy["value"] == 1
            if (
                not slow
                or policy["periodSeconds"] < grace(manifest.pods()["ftpd"])
                or down["selectPolicy"] != "Min"
            ):
                yield "nodes are removed faster than they drain"


@invariant
def monitoring_finds_the_pods(manifest: Manifest) -> Iterator[str]:
    rules = (REPOSITORY / "deploy/monitoring/rules.yaml").read_text(encoding="utf-8")
    jobs = set(re.findall(r'job=\\"([a-z-]+)\\"', rules))
    for monitor in manifest.of_kind("PodMonitor"):
        pods = [
            pod
            for pod in manifest.pods().values()
            if matches(monitor["spec"]["selector"], pod["metadata"]["labels"])
        ]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if any(endpoint["port"] not in ports(pod) for pod in pods):
                yield f"PodMonitor {monitor['metadata']['name']} reads the port {endpoint['port']}"
            named = [r["replacement"] for r in endpoint["relabelings"] if r["targetLabel"] == "job"]
            if not set(named) <= jobs or not named:
                name = monitor["metadata"]["name"]
                yield f"PodMonitor {name} names its job {named}; the rules know {sorted(jobs)}"


@invariant
def copies_in_the_chart_are_current(_: Manifest) -> Iterator[str]:
    for name in ("rules.yaml", "dashboard.json"):
        if (CHART / "files" / name).read_bytes() != (REPOSITORY / "deploy/monitoring" / name).read_bytes():
            yield f"copy deploy/monitoring/{name} to deploy/helm/distributed-ftp/files/"
    workspace = (REPOSITORY / "Cargo.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', workspace, re.MULTILINE)[1]
    if f'appVersion: "{version}"' not in (CHART / "Chart.yaml").read_text(encoding="utf-8"):
        yield f"Chart.yaml: appVersion is not the programs' version, {version}"
