# Common functions of the test scripts. `client` is the machine of the clients, `ftp_nodes` the nodes.
import json
import shlex
from typing import Any

URL = f"ftp://demo:secret@{balancer.name}"
# curl gives up on a stalled connection, so that it can resume through another node.
CURL = f"curl -sS {curl_flags} --connect-timeout 20 --speed-limit 1 --speed-time 20"


def wait_for_cluster() -> None:
    """Waits until all parts run and a client can log in."""
    client.start()
    for machine, _ in parts:
        machine.start()
    for machine, unit in parts:
        machine.wait_for_unit(unit, timeout=300)
    client.wait_for_unit("multi-user.target", timeout=300)
    wait_for_login()


def wait_for_login(timeout: int = 300) -> None:
    client.wait_until_succeeds(f"{CURL} --max-time 60 {URL}/ > /dev/null", timeout=timeout)


def make_file(path: str, kilobytes: int) -> str:
    """Makes a random file at the client. Returns its hash."""
    client.succeed(f"head -c {kilobytes}K /dev/urandom > {path}")
    return hash_of(path)


def hash_of(path: str) -> str:
    return client.succeed(f"sha256sum < {path}").split()[0]


def upload(path: str, remote: str) -> None:
    client.succeed(f"{CURL} -T {path} {URL}/{remote}")


def download(remote: str) -> str:
    """The hash of a file that a client downloads."""
    return client.succeed(f"{CURL} {URL}/{remote} > /tmp/download && sha256sum < /tmp/download").split()[0]


def in_background(name: str, command: str) -> None:
    """Starts a command at the client. Its status goes to NAME.rc, its output to NAME.out and NAME.err."""
    name = f"/tmp/{name}"
    client.succeed(
        f"rm -f {name}.*; (set +e; {command} > {name}.out 2> {name}.err < /dev/null; "
        f"echo $? > {name}.rc) > /dev/null 2>&1 &"
    )


def end_of(name: str, timeout: int = 300) -> int:
    """Waits for a command in the background. Returns its status."""
    client.wait_until_succeeds(f"test -s /tmp/{name}.rc", timeout=timeout)
    status = int(client.succeed(f"cat /tmp/{name}.rc"))
    log.info(f"{name} ended with {status}: " + client.succeed(f"cat /tmp/{name}.err"))
    return status


def ftptest(*arguments: object) -> str:
    return f"FTP_HOST={balancer.name} python3 /etc/ftptest.py " + " ".join(shlex.quote(str(a)) for a in arguments)


def answer(*arguments: object, timeout: int = 600) -> Any:
    return json.loads(client.succeed(ftptest(*arguments), timeout=timeout))


def answer_of(name: str, timeout: int = 600) -> Any:
    """The result of a test client in the background."""
    status = end_of(name, timeout)
    assert status == 0, f"{name} failed"
    return json.loads(client.succeed(f"cat /tmp/{name}.out"))


def start_session(name: str, command: str) -> Any:
    """Starts a session that stays open (`hold` or `chat`). Returns its node."""
    in_background(name, ftptest(command, f"/tmp/{name}"))
    client.wait_until_succeeds(f"test -s /tmp/{name}.port", timeout=120)
    return node_of(int(client.succeed(f"cat /tmp/{name}.port")))


def passive_ports() -> dict[str, list[list[int]]]:
    """First and last port of each block or slice of each live node, as they are now."""
    return {node["name"]: node["passive_ports"] for node in api("/v1/nodes")}


def port_counts() -> dict[str, int]:
    """The number of passive ports of each live node."""
    return {name: sum(last - first + 1 for first, last in ports) for name, ports in passive_ports().items()}


def ports_of(node: Any) -> str:
    """The node's passive ports, as a test client takes them: 50000-50004,50015-50019. Waits until it has some."""
    found: list[str] = []

    def look(_last: bool) -> bool:
        found[:] = [f"{first}-{last}" for first, last in passive_ports().get(node.name, [])]
        return found != []

    retry(look, timeout_seconds=120)
    return ",".join(found)


def node_of(port: int) -> Any:
    """The node that owns the port now."""
    owners = passive_ports()
    return next(node for node in ftp_nodes if any(a <= port <= b for a, b in owners.get(node.name, [])))


def metric(node: Any, name: str, port: int = 9121) -> float:
    lines = node.succeed(f"curl -sf http://127.0.0.1:{port}/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((name + " ", name + "{")))


def relayed() -> float:
    """Data connections that ftp-relay on the balancer has carried."""
    return metric(balancer, "ftp_relayed_total", 9122)


def node_with_transfer() -> Any:
    """The node that runs the only transfer."""
    found: list[Any] = []

    def look(_last: bool) -> bool:
        found[:] = [node for node in ftp_nodes if metric(node, "ftp_transfers") > 0]
        return len(found) == 1

    retry(look, timeout_seconds=120)
    return found[0]


def wait_for_bytes(remote: str, count: int) -> None:
    """Waits until the storage has this many bytes of an upload."""
    storage.wait_until_succeeds(
        f"test $(stat -c %s /srv/ftp/demo/{remote} || echo 0) -ge {count}", timeout=180
    )


def api(path: str, method: str = "GET", body: str = "") -> Any:
    """Calls authd's API with the administrator's token, on authd's host."""
    token = "/var/lib/distributed-ftp-secrets/adminToken"
    data = f"-H 'Content-Type: application/json' -d {shlex.quote(body)}" if body else ""
    text = auth.succeed(
        f'curl -sf -X {method} -H "Authorization: Bearer $(cat {token})" {data} '
        f"http://{auth_address}:5160{path}"
    )
    return json.loads(text) if text.strip() else None


def live_nodes() -> set[str]:
    return {node["name"] for node in api("/v1/nodes")}
