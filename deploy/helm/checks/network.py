"""Evaluates NetworkPolicies against the connections that the parts make."""

from collections.abc import Iterator

from invariants import front, invariant, listening
from manifests import Manifest, matches

CLIENT = "client"
MONITORING = "monitoring"


def admits(rules: list[dict], side: str, other: dict | str, port: int) -> bool:
    """True if a rule admits TCP connections with `other` (labels of a pod, or an outsider) to `port`."""
    for rule in rules:
        entries = rule.get("ports")
        fits = entries is None or any(
            p["protocol"] == "TCP" and p["port"] <= port <= p.get("endPort", p["port"]) for p in entries
        )
        if fits and (side not in rule or any(is_peer(peer, other) for peer in rule[side])):
            return True
    return False


def is_peer(peer: dict, other: dict | str) -> bool:
    if "ipBlock" in peer:
        # The examples name networks of clients only.
        return other == CLIENT
    if "namespaceSelector" in peer:
        names = peer["namespaceSelector"]["matchLabels"].values()
        return other in names
    return isinstance(other, dict) and matches(peer["podSelector"], other)


def expected(manifest: Manifest) -> set[tuple[str, str, int]]:
    """The connections that must be possible: from, to, port."""
    first, last = manifest.passive_range()
    passive = set(range(first, last + 1))
    door = front(manifest)
    control = listening(manifest, "ftpd") - passive - {9121}
    table = {(CLIENT, door, port) for port in control | passive}
    table |= {("ftpd", "ftpd", port) for port in passive} | {("ftpd", "authd", 5160)}
    if door == "relay":
        table |= {("relay", "ftpd", port) for port in control | passive}
    if "redis" in manifest.workloads():
        table |= {(component, "redis", 6379) for component in ("ftpd", "authd", door)}
    if any("namespaceSelector" in str(policy) for policy in manifest.of_kind("NetworkPolicy")):
        table |= {(MONITORING, "ftpd", 9121), (MONITORING, "authd", 5160)}
        if door == "relay":
            table.add((MONITORING, "relay", 9122))
    return table


@invariant
def policies_admit_the_table_of_connections_and_nothing_else(manifest: Manifest) -> Iterator[str]:
    policies = manifest.of_kind("NetworkPolicy")
    if not policies:
        return
    pods = manifest.pods()
    labels = {name: pod["metadata"]["labels"] for name, pod in pods.items()}

    def rules(component: str, side: str) -> list[dict]:
        own = [p for p in policies if matches(p["spec"]["podSelector"], labels[component])]
        return [rule for policy in own for rule in policy["spec"][side]]

    for component in pods:
        if not rules(component, "ingress"):
            yield f"no NetworkPolicy covers {component}"
    wanted = expected(manifest)
    # Rules for clients without networks admit everybody, pods too.
    open_door = any("from" not in rule for rule in rules(front(manifest), "ingress"))
    for target in pods:
        for source in [CLIENT, MONITORING, *pods]:
            outside = source in (CLIENT, MONITORING)
            for port in sorted(listening(manifest, target)):
                other = source if outside else labels[source]
                possible = admits(rules(target, "ingress"), "from", other, port)
                if not outside and possible:
                    possible = admits(rules(source, "egress"), "to", labels[target], port)
                is_wanted = (source, target, port) in wanted
                by_the_open_door = open_door and (CLIENT, target, port) in wanted
                if is_wanted and not possible:
                    yield f"{source} cannot connect to {target}:{port}"
                elif possible and not is_wanted and not by_the_open_door:
                    yield f"{source} can connect to {target}:{port}, and need not"
    for component in pods:
        if component != "redis" and not any(
            p["protocol"] == "UDP" and p["port"] == 53
            for rule in rules(component, "egress")
            for p in rule.get("ports", [])
        ):
            yield f"{component} cannot resolve names"
