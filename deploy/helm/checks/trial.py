#!/usr/bin/env python3
"""Runs the pods of renderings with podman, and transfers through them: `./dev test-deploy --pods`."""

import ftplib
import hashlib
import io
import json
import math
import os
import random
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from pathlib import Path

from manifests import CHART, GOLDEN, Manifest
from pods import DEADLINE, OPTIONS, Failed, Pod, Pods, eventually, podman

PASSWORD = "a long enough password"
IMAGES = {
    "ftpd": "distributed-ftp/ftpd",
    "authd": "distributed-ftp/authd",
    "relay": "distributed-ftp/ftp-relay",
}
SIZE = 4 * 2**20
DECLARED = "authd_users_declared"
LEASED = 'ftp_blocks{state="leased"}'


class Client(ftplib.FTP):
    """A client whose connections go to any pod behind the Service, as kube-proxy sends them."""

    def __init__(self, pods: Pods, door: Pod | None = None, user: str = "trial"):
        super().__init__(timeout=DEADLINE)
        self.pods = pods
        self.used: set[str] = set()
        self.connect((door or random.choice(pods.doors())).address, 2121)
        self.login(user, PASSWORD)

    def makepasv(self) -> tuple[str, int]:
        door = random.choice(self.pods.doors())
        self.used.add(door.name)
        return door.address, self.passive_port()

    def passive_port(self) -> int:
        return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())[1]


class Upload:
    """An upload of which half was sent."""

    def __init__(self, client: Client, name: str):
        self.client, self.name, self.content = client, name, os.urandom(SIZE)
        self.connection = client.transfercmd(f"STOR {name}")
        self.connection.sendall(self.content[: SIZE // 2])

    def finish(self) -> str:
        self.connection.sendall(self.content[SIZE // 2 :])
        self.connection.close()
        return self.client.voidresp()

    def finish_whole(self, pods: Pods) -> None:
        reply = self.finish()
        expect(reply.startswith("226"), f"{self.name} got {reply}")
        expect_stored(pods, self.name, self.content)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Failed(what)


def expect_stored(pods: Pods, name: str, content: bytes) -> None:
    found = (pods.files / "trial" / name).read_bytes()
    expect(
        hashlib.sha256(found).digest() == hashlib.sha256(content).digest(), f"{name} is not stored as sent"
    )


def transfers_through_any_pod(pods: Pods) -> None:
    """Control and data connections of one client go to different pods; every byte arrives."""

    def relayed() -> float:
        return sum(node.metric("ftp_relayed_total") for node in pods.nodes())

    before, used = relayed(), set()
    for number in range(12):
        client, name, content = Client(pods), f"file-{number}", os.urandom(200_000)
        client.storbinary(f"STOR {name}", io.BytesIO(content))
        expect_stored(pods, name, content)
        received = bytearray()
        client.retrbinary(f"RETR {name}", received.extend)
        expect(received == content, f"{name} is received wrongly")
        expect(name in client.nlst(), f"{name} is not listed")
        used |= client.used
        client.quit()
    expect(len(used) > 1 or len(pods.doors()) == 1, f"all data connections went to {used}")
    if pods.of("relay"):
        expect(relayed() == before, "a relay sent data connections to nodes that do not own their ports")
    else:
        expect(relayed() > before, "no data connection was carried to its node")


def every_node_has_ports(pods: Pods) -> None:
    for node in pods.nodes():
        eventually(f"{node.name} has no block of ports", lambda n=node: n.metric(LEASED) >= 1)


def nodes_see_the_address_of_the_client(pods: Pods) -> None:
    client = Client(pods)
    own = client.sock.getsockname()[0]
    request = urllib.request.Request(f"http://{pods.of('authd')[0].address}:5160/v1/sessions")
    request.add_header("Authorization", "Bearer generated-admin-token")

    def addresses() -> set[str]:
        with urllib.request.urlopen(request, timeout=10) as response:
            answer = json.load(response)
        sessions = answer["sessions"] if isinstance(answer, dict) else answer
        return {session["address"] for session in sessions}

    eventually("the session is not listed", addresses)
    expect(addresses() == {own}, f"the nodes see {addresses()} instead of {own}")
    client.quit()


def a_changed_secret_is_used_without_a_restart(pods: Pods) -> None:
    """As the kubelet changes it: a user is declared; with TLS, the certificate is renewed."""
    users = json.loads(pods.secrets["release-users"]["users.json"])
    users["users"]["second"] = users["users"]["trial"]
    pods.change_secret("release-users", {"users.json": json.dumps(users)})
    # Asking first, because failed logins would be counted.
    for authd in pods.of("authd"):
        eventually(f"{authd.name} has not read the new user", lambda a=authd: a.metric(DECLARED) == 2)
    Client(pods, user="second").quit()
    if "ftp-certificate" in pods.secrets:
        renewed = certificate()
        pods.change_secret("ftp-certificate", renewed)
        for door in pods.doors():
            eventually(
                f"{door.name} shows the old certificate", lambda d=door: shown_by(d) == renewed["tls.crt"]
            )


def a_stopped_node_finishes_its_transfers(pods: Pods) -> None:
    """The pod is not ready and has left the Service; a connection that comes after that still arrives."""
    node = pods.nodes()[-1]
    # Behind relays the client cannot choose its node.
    running, late = Upload(client_of(pods, node), "through-the-drain"), client_of(pods, node)
    port = late.passive_port()
    late.putcmd("STOR after-the-signal")
    with stopping(pods, node):
        eventually(f"{node.name} is still ready", lambda: node.status("/readyz") != 200)
        expect(node.status("/healthz") == 200, "the liveness probe would kill a node that drains")
        content = os.urandom(SIZE)
        door = random.choice(pods.doors())
        with socket.create_connection((door.address, port), timeout=DEADLINE) as connection:
            expect(late.getresp().startswith("150"), "the late data connection did not reach the node")
            connection.sendall(content)
        expect(late.voidresp().startswith("226"), "the late upload was not confirmed")
        expect_stored(pods, "after-the-signal", content)
        running.finish_whole(pods)
    transfers_through_any_pod(pods)


def client_of(pods: Pods, node: Pod) -> Client:
    """A client with a session on this node."""
    if not pods.of("relay"):
        return Client(pods, node)
    for _ in range(50):
        before = node.metric("ftp_sessions")
        client = Client(pods)
        if node.metric("ftp_sessions") > before:
            return client
    raise Failed(f"the relays send no session to {node.name}")


class stopping:
    """Stops a pod while the block runs; at its end the pod must have ended in order."""

    def __init__(self, pods: Pods, pod: Pod):
        self.pod, self.failure = pod, None
        self.thread = threading.Thread(target=self.stop, args=(pods,), daemon=True)

    def stop(self, pods: Pods) -> None:
        try:
            pods.stop(self.pod)
        except (Failed, subprocess.SubprocessError) as error:
            self.failure = error

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.thread.join(timeout=DEADLINE)
            expect(not self.thread.is_alive(), f"{self.pod.name} did not stop after its last transfer")
            expect(self.failure is None, str(self.failure))


def a_stopped_relay_finishes_its_transfers(pods: Pods) -> None:
    relay = pods.of("relay")[-1]
    pods.forget(relay)
    others = dict(pods.running)
    # The control and the data connection pass through the relay that stops.
    pods.running = {("relay", relay.number): relay}
    upload = Upload(Client(pods, relay), "through-the-relay")
    pods.running = others
    with stopping(pods, relay):
        eventually(f"{relay.name} is still ready", lambda: relay.status("/readyz") != 200)
        upload.finish_whole(pods)
        upload.client.quit()
    transfers_through_any_pod(pods)


def nodes_join_and_leave(pods: Pods) -> None:
    """From two nodes to five, and down to two, with an upload at the first node."""
    upload = Upload(client_of(pods, pods.nodes()[0]), "through-the-scaling")
    for number in range(2, 5):
        pods.start("ftpd", number)
    for node in pods.nodes():
        pods.wait_until_ready(node)
    every_node_has_ports(pods)
    transfers_through_any_pod(pods)
    for node in reversed(pods.nodes()[2:]):
        pods.stop(node)
    transfers_through_any_pod(pods)
    upload.finish_whole(pods)


def the_autoscaler_follows_the_load(pods: Pods) -> None:
    """The number of nodes for which the autoscaler of the rendering `cloud` asks, by the nodes' metric."""
    spec = Manifest.read(GOLDEN / "cloud.yaml", CHART / "ci/cloud-values.yaml")
    spec = spec.of_kind("HorizontalPodAutoscaler")[0]["spec"]
    metric = spec["metrics"][0]["pods"]
    target = int(metric["target"]["averageValue"].removesuffix("m"))

    def wanted() -> int:
        nodes = pods.nodes()
        # Kubernetes computes with thousandths, and does nothing within 10 % of the target.
        total = sum(round(1000 * node.metric(metric["metric"]["name"])) for node in nodes)
        is_near = abs(total / len(nodes) / target - 1) <= 0.1
        number = len(nodes) if is_near else math.ceil(total / target)
        return max(spec["minReplicas"], min(spec["maxReplicas"], number))

    expect(wanted() == 3, f"three idle nodes should stay, not {wanted()}")
    # 16 of 20 sessions on each of three nodes: 0.8, and 0.6 is the target.
    clients = [Client(pods, node) for node in pods.nodes() for _ in range(16)]
    eventually("the load asks for no further node", lambda: wanted() == 4)
    pods.wait_until_ready(pods.start("ftpd", 3))
    every_node_has_ports(pods)
    eventually("four nodes are not enough", lambda: wanted() == 4)
    upload = Upload(client_of(pods, pods.nodes()[-1]), "through-the-autoscaling")
    for client in clients:
        client.quit()
    eventually("the load does not fall", lambda: wanted() == 3)
    with stopping(pods, pods.nodes()[-1]):
        upload.finish_whole(pods)
    expect(wanted() == 3, "the load asks for a node again")


def a_killed_node_loses_no_confirmed_byte(pods: Pods) -> None:
    """The upload resumes through another node, and the new pod of the same name serves."""
    node = pods.nodes()[-1]
    upload = Upload(client_of(pods, node), "through-the-crash")
    eventually("nothing arrived", lambda: (pods.files / "trial/through-the-crash").exists())
    pods.kill(node)
    try:
        reply = upload.finish()
    except (OSError, EOFError, ftplib.Error):
        reply = ""
    expect(not reply, f"an upload to a node that was killed got {reply}")

    def resume() -> bool:
        client = Client(pods)
        try:
            offset = client.size(upload.name) or 0
            client.storbinary(f"STOR {upload.name}", io.BytesIO(upload.content[offset:]), rest=offset)
            return True
        except ftplib.error_temp:
            # The dead node's lease of the file has not expired.
            return False
        finally:
            client.close()

    eventually("the upload cannot be resumed", resume)
    expect_stored(pods, upload.name, upload.content)
    pods.wait_until_ready(pods.start("ftpd", node.number))
    transfers_through_any_pod(pods)


def certificate() -> dict[str, str]:
    """A new certificate, signed by itself."""
    with tempfile.TemporaryDirectory() as folder:
        key, chain = Path(folder) / "tls.key", Path(folder) / "tls.crt"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ftp.example.com"]
        command += ["-days", "2", "-keyout", str(key), "-out", str(chain)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return {"tls.crt": chain.read_text(), "tls.key": key.read_text()}


def shown_by(door: Pod) -> str:
    """The certificate of implicit FTPS."""
    return ssl.get_server_certificate((door.address, 2990), timeout=10)


def redis_image() -> str:
    """An image of this host's redis-server and sh, in place of the official one, which needs a registry."""
    name = "distributed-ftp-pods/redis:local"
    programs = {"/usr/bin/redis-server": "/usr/bin/redis-server", "/bin/dash": "/usr/bin/sh"}
    libraries = set()
    for path in programs:
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        libraries |= {word for word in listed.split() if word.startswith("/")}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "root.tar"
        with tarfile.open(archive, "w", dereference=True) as tar:
            for path, inside in [*programs.items(), *((path, path) for path in libraries)]:
                tar.add(path, inside)
        podman("import", "--change", "ENV PATH=/usr/bin", str(archive), name)
    return name


def tagged(image: str) -> str:
    chart = (CHART / "Chart.yaml").read_text(encoding="utf-8")
    version = next(line for line in chart.splitlines() if line.startswith("appVersion:")).split('"')[1]
    return f"{image}:{version}"


def missing() -> str | None:
    """Why the pods cannot run here."""
    if os.geteuid() != 0:
        return "root is needed, because the host must reach the pods' addresses"
    programs = ("/usr/bin/redis-server", "/bin/dash", "/usr/bin/openssl", "/usr/bin/podman")
    if absent := [program for program in programs if not Path(program).exists()]:
        return f"there is no {', '.join(absent)}"
    for image in map(tagged, IMAGES.values()):
        if subprocess.run(["podman", "image", "exists", image], check=False, timeout=60).returncode:
            return f"podman has no image {image}"
    return None


def run(name: str, images: dict[str, str], relays: int, steps: list, changes: dict[str, str]) -> None:
    """Starts three nodes, two authd and Redis of the rendering `name`, with changed settings."""
    manifest = Manifest.read(GOLDEN / f"{name}.yaml", CHART / f"ci/{name}-values.yaml")
    if relays:
        # The example has its Redis elsewhere: here it is the pod of the other one.
        other = Manifest.read(GOLDEN / "minimal.yaml", CHART / "ci/minimal-values.yaml")
        manifest.objects.append(other.workloads()["redis"])
    hashing = ("run", "--rm", "--interactive", "--no-healthcheck", *OPTIONS, images["authd"], "hash-password")
    user = {"password_hash": podman(*hashing, text=PASSWORD), "home": "/trial"}
    secrets = {"release-users": {"users.json": json.dumps({"users": {"trial": user}})}}
    if relays:
        secrets |= {"ftp-certificate": certificate(), "redis-authority": {"ca.crt": "none"}}
    with Pods(manifest, images, secrets) as pods:
        home = pods.files / "trial"
        home.mkdir()
        os.chown(home, 2121, 2121)
        for config in manifest.of_kind("ConfigMap"):
            for file, text in config["data"].items():
                for old, new in (changes | {"10.244.0.0/16": str(pods.subnet)}).items():
                    text = text.replace(old, new)
                config["data"][file] = text
        for component, count in (("redis", 1), ("authd", 2), ("ftpd", 3), ("relay", relays)):
            for number in range(count):
                pods.start(component, number)
        for pod in [*pods.of("authd"), *pods.nodes(), *pods.of("relay")]:
            pods.wait_until_ready(pod)
        for step in steps:
            step(pods)
            print(f"pods of {name}: passed: {step.__name__}", flush=True)


def main() -> int:
    if reason := missing():
        print(f"SKIPPED: the pods: {reason}", file=sys.stderr)
        return 0
    redis = redis_image()
    try:
        run_all({part: tagged(image) for part, image in IMAGES.items()} | {"redis": redis})
    finally:
        podman("rmi", redis)
    return 0


def run_all(images: dict[str, str]) -> None:
    first = [
        every_node_has_ports,
        transfers_through_any_pod,
        nodes_see_the_address_of_the_client,
        a_changed_secret_is_used_without_a_restart,
        a_stopped_node_finishes_its_transfers,
    ]
    run("minimal", images, 0, [*first, nodes_join_and_leave, a_killed_node_loses_no_confirmed_byte], {})
    run("relay", images, 2, [*first, a_stopped_relay_finishes_its_transfers], {})
    # So few sessions that a test can reach the limit.
    few = {"max_sessions = 2000": "max_sessions = 20"}
    run("minimal", images, 0, [every_node_has_ports, the_autoscaler_follows_the_load], few)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        sys.exit(f"pods: FAILED: {failed}")
