#!/usr/bin/env python3
"""Measures the CPU time of carrying data through the balancer: nginx and the kernel data path, in one run.

    sudo bench/balancer/measure.py --ftpd target/release/ftpd [--rounds 7] [--size-mib 2048]

A client, a balancer and a node, each in a separate network namespace; nginx with the settings of nginx/,
the rules and routes of nginx/kernel/. Both data paths take turns within each round, with the same
processes: the chain `to_owner` is flushed for nginx and loaded for the kernel.

The CPU time is that of ftpd, nginx and the client (user and system). Between namespaces of one machine
the kernel handles packets within the system call that sends them, so these figures include forwarding.
The work of ksoftirqd is counted as the kernel's. Prints medians and ranges.
"""

import argparse
import ftplib
import mmap
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMESPACES = {"client": "ftpbench-client", "lb": "ftpbench-lb", "node": "ftpbench-node"}
PUBLIC, INSIDE, NODE, CLIENT = "203.0.113.10", "10.98.0.10", "10.98.0.11", "203.0.113.50"
SLICE = "50000-50009"
CONGESTION_CONTROLS = pathlib.Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def inside(host: str, *command: object) -> list[str]:
    return ["ip", "netns", "exec", NAMESPACES[host], *map(str, command)]


def fill(template: str, **values: object) -> str:
    text = (ROOT / "nginx" / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def make_networks() -> None:
    # The list of congestion controls allowed in namespaces belongs to the host; main() restores it.
    allowed = CONGESTION_CONTROLS.read_text().split()
    if "cubic" not in allowed:
        CONGESTION_CONTROLS.write_text(" ".join([*allowed, "cubic"]))
    for name in NAMESPACES.values():
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    link("client", "eth0", CLIENT, "public", PUBLIC)
    link("node", "eth0", NODE, "inside", INSIDE)
    for host in NAMESPACES:
        # Linux's defaults, whatever this host is set to.
        settings = [
            "tcp_congestion_control=cubic",
            "tcp_rmem=4096 131072 6291456",
            "tcp_wmem=4096 16384 4194304",
        ]
        run(*inside(host, "sysctl", "-qw", *[f"net.ipv4.{setting}" for setting in settings]))
    run(*inside("lb", "sysctl", "-qw", "net.ipv4.conf.all.forwarding=1"))
    run(*inside("node", ROOT / "nginx/kernel/replies.sh", "add", NODE, SLICE, INSIDE, INSIDE))


def link(host: str, interface: str, address: str, balancer_interface: str, balancer_address: str) -> None:
    name, lb = NAMESPACES[host], NAMESPACES["lb"]
    peer = ["type", "veth", "peer", "name", interface, "netns", name]
    run("ip", "-n", lb, "link", "add", balancer_interface, *peer)
    for namespace, card, ip in ((name, interface, address), (lb, balancer_interface, balancer_address)):
        run("ip", "-n", namespace, "addr", "add", f"{ip}/24", "dev", card)
        run("ip", "-n", namespace, "link", "set", card, "up")


def load_stream_module() -> str:
    """The directive that loads nginx's stream module, or nothing if it is built in."""
    options = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True).stderr.split()
    if "--with-stream=dynamic" not in options:
        return ""
    values = dict(option.split("=", 1) for option in options if "=" in option)
    modules = values.get("--modules-path", values.get("--prefix", "/usr/local/nginx") + "/modules")
    return f"load_module {modules}/ngx_stream_module.so;"


def nginx_configuration(directory: pathlib.Path) -> str:
    listen = lambda ports: fill("listen.conf", address=PUBLIC, ports=ports)
    stream = fill(
        "stream.conf",
        access_log=directory / "access.log",
        control=fill(
            "control.conf",
            port=21,
            upstream_servers=fill("upstream-server.conf", node=NODE, port=21),
            control_listen=listen(21),
            control_timeout="4h",
        ),
        implicit_control="",
        data_servers=fill("data-server.conf", name="node", node=NODE, data_listen=listen(SLICE), data_timeout="6m"),
    )
    return fill(
        "nginx.conf",
        load_module=load_stream_module(),
        pid=directory / "nginx.pid",
        error_log="stderr",
        worker_processes="auto",
        worker_connections=1024,
        worker_rlimit_nofile=2048,
        worker_shutdown_timeout="5m",
        stream=stream,
    )


def rules() -> str:
    return fill(
        "kernel/data-path.nft",
        family="ip",
        protocol="ipv4",
        address_type="ipv4_addr",
        passive_ports=SLICE,
        owners=fill("kernel/owners.nft", elements=f"{SLICE} : {NODE}"),
        counters="counter to_node { }\ncounter from_node { }",
        to_nodes=f'{NODE} : "to_node"',
        from_nodes=f'{NODE} : "from_node"',
        redirect=fill("kernel/redirect.nft", destination="", passive_ports=SLICE, family="ip"),
        other_forwarding="drop",
        nodes=NODE,
    )


def children(pid: int) -> list[int]:
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [grandchild for child in found for grandchild in children(int(child))]


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def softirq_threads() -> list[int]:
    names = ((int(path.parent.name), path.read_text()) for path in pathlib.Path("/proc").glob("[0-9]*/comm"))
    return [pid for pid, name in names if name.startswith("ksoftirqd/")]


def login() -> ftplib.FTP:
    ftp = ftplib.FTP(timeout=120)
    ftp.connect(PUBLIC, 21)
    ftp.login("bench", "bench")
    ftp.voidcmd("TYPE I")
    return ftp


def wait_for_login() -> None:
    """Waits until nginx and the node serve. Runs in the client's namespace."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return login().close()
        except (OSError, EOFError, ftplib.Error):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def transfer(direction: str, size: int) -> None:
    """One transfer by a client with as little CPU time as possible. Runs in the client's namespace."""
    ftp = login()
    buffer = mmap.mmap(-1, 1 << 20)
    if direction == "RETR":
        data, done = ftp.transfercmd("RETR file"), 0
        # The kernel drops the bytes.
        while count := data.recv_into(buffer, len(buffer), socket.MSG_TRUNC):
            done += count
    else:
        data, done = ftp.transfercmd("STOR up"), 0
        while done < size:
            done += data.send(memoryview(buffer)[: min(len(buffer), size - done)])
        data.shutdown(socket.SHUT_WR)
    data.close()
    ftp.voidresp()
    assert done == size, f"{done} of {size} bytes"
    ftp.quit()


def measure(direction: str, size: int, parts: dict[str, list[int]]) -> dict[str, float]:
    before = {part: cpu_seconds(pids) for part, pids in parts.items()}
    own = os.times()
    start = time.monotonic()
    run(*inside("client", sys.executable, __file__, "--transfer", direction, "--size-mib", size >> 20))
    wall = time.monotonic() - start
    gib = size / 2**30
    result = {part: (cpu_seconds(pids) - before[part]) / gib for part, pids in parts.items()}
    result["servers"] = result["ftpd"] + result["nginx"]
    times = os.times()
    result["client"] = (times.children_user + times.children_system - own.children_user - own.children_system) / gib
    result["whole path"] = result["servers"] + result["client"] + result["ksoftirqd"]
    result["Gbit/s"] = 8 * size / wall / 1e9
    return result


def report(results: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    columns = ["Gbit/s", "ftpd", "nginx", "servers", "client", "ksoftirqd", "whole path"]
    print("| transfer | carried by | " + " | ".join(c if c == "Gbit/s" else f"{c}, CPU s/GiB" for c in columns) + " |")
    print("| --- | --- |" + " ---: |" * len(columns))
    for (direction, way), rounds in results.items():
        cells = []
        for column in columns:
            values = sorted(result[column] for result in rounds)
            digits = 1 if column == "Gbit/s" else 3
            median = statistics.median(values)
            cells.append(f"{median:.{digits}f} ({values[0]:.{digits}f}-{values[-1]:.{digits}f})")
        print(f"| {direction} | {way} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ftpd", type=pathlib.Path, default=ROOT / "target/release/ftpd")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--transfer", choices=["RETR", "STOR"], help=argparse.SUPPRESS)
    parser.add_argument("--wait-for-login", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.size_mib << 20
    if options.wait_for_login:
        return wait_for_login()
    if options.transfer:
        return transfer(options.transfer, size)

    processes: list[subprocess.Popen[bytes]] = []
    congestion_controls = CONGESTION_CONTROLS.read_text()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        directory = pathlib.Path(scratch)
        directory.chmod(0o755)
        home = directory / "home"
        home.mkdir()
        with (home / "file").open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        (directory / "nginx.conf").write_text(nginx_configuration(directory))
        (directory / "rules.nft").write_text(rules())
        try:
            make_networks()
            log = (directory / "log").open("wb")
            for command in (
                inside("node", options.ftpd.resolve(), "--standalone", "true", "--user", "bench:bench", "--listen", NODE,
                       "--port", "21", "--root", home, "--passive-port-min", SLICE.split("-")[0],
                       "--passive-port-max", SLICE.split("-")[1], "--trusted-balancers", f"{INSIDE}/32"),
                inside("lb", "nginx", "-p", directory, "-c", directory / "nginx.conf", "-e", "stderr", "-g", "daemon off;"),
            ):  # fmt: skip
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            run(*inside("client", sys.executable, __file__, "--wait-for-login"))
            parts = {"ftpd": children(processes[0].pid), "nginx": children(processes[1].pid), "ksoftirqd": softirq_threads()}
            ways = {
                "nginx": ["nft", "flush", "chain", "inet", "ftp_data_path", "to_owner"],
                "kernel": ["nft", "-f", directory / "rules.nft"],
            }
            results: dict[tuple[str, str], list[dict[str, float]]] = {}
            run(*inside("lb", *ways["kernel"]))
            for number in range(options.rounds + 1):
                for direction in ("RETR", "STOR"):
                    for way, switch in ways.items():
                        run(*inside("lb", *switch))
                        result = measure(direction, size, parts)
                        # The first round is a warm-up.
                        if number:
                            results.setdefault((direction, way), []).append(result)
            report(results)
        except subprocess.CalledProcessError:
            print((directory / "log").read_text(), file=sys.stderr)
            raise
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for name in NAMESPACES.values():
                subprocess.run(["ip", "netns", "del", name], check=False)
            CONGESTION_CONTROLS.write_text(congestion_controls)


if __name__ == "__main__":
    main()
