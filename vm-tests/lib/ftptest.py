"""FTP clients of the VM tests, for behaviour that curl and lftp lack: ftptest.py COMMAND ARGUMENT...

Prints one line of JSON. Content is random, and compared by hash.
"""

import ftplib
import hashlib
import io
import json
import os
import pathlib
import socket
import sys
import threading
import time

HOST, USER, PASSWORD = os.environ["FTP_HOST"], "demo", "secret"
# Longer than any successful wait in the cluster; emulated machines are slow.
PATIENCE = 60


def login(user: str = USER) -> ftplib.FTP:
    ftp = ftplib.FTP(timeout=PATIENCE)
    # IPv4, for PASV; curl uses IPv6 where it is available.
    ftp.connect(socket.gethostbyname(HOST), 21)
    ftp.login(user, PASSWORD)
    # `ntransfercmd` does not send TYPE, and TYPE A would translate line ends.
    ftp.voidcmd("TYPE I")
    return ftp


def passive_port(ftp: ftplib.FTP) -> int:
    """The port of the next data connection, which identifies the node."""
    return ftplib.parse227(ftp.sendcmd("PASV"))[1]


def store(ftp: ftplib.FTP, name: str, content: bytes) -> None:
    ftp.storbinary(f"STOR {name}", io.BytesIO(content), blocksize=65536)


def retrieve(ftp: ftplib.FTP, name: str) -> bytes:
    parts: list[bytes] = []
    ftp.retrbinary(f"RETR {name}", parts.append, blocksize=65536)
    return b"".join(parts)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spread(count: int) -> list[int]:
    """Opens several sessions at the same time, transfers data in each, and prints their passive ports."""
    sessions = [login() for _ in range(count)]
    ports = [passive_port(ftp) for ftp in sessions]
    for number, ftp in enumerate(sessions):
        content = os.urandom(5000)
        store(ftp, f"spread-{number}", content)
        assert retrieve(ftp, f"spread-{number}") == content
        ftp.delete(f"spread-{number}")
        ftp.quit()
    return ports


def digest_through(ports: str, name: str) -> str:
    """The hash of a file, read through the node with these ports."""
    ftp = login_through(ports, USER)
    try:
        return digest(retrieve(ftp, name))
    finally:
        ftp.close()


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 600
    while not pathlib.Path(path).exists():
        assert time.monotonic() < deadline, f"nobody made {path}"
        time.sleep(0.1)


def hold(name: str) -> dict[str, object]:
    """A session that waits idle for the file NAME.go, and then works as before."""
    ftp = login()
    port = passive_port(ftp)
    pathlib.Path(f"{name}.port").write_text(str(port))
    wait_for(f"{name}.go")
    ftp.voidcmd("NOOP")
    content = os.urandom(20000)
    file = os.path.basename(name)
    store(ftp, file, content)
    same = retrieve(ftp, file) == content
    listed = file in ftp.nlst()
    ftp.quit()
    return {"port": port, "same": same, "listed": listed}


def chat(name: str) -> dict[str, object]:
    """Sends a command without file access each second until the file NAME.stop exists."""
    ftp = login()
    pathlib.Path(f"{name}.port").write_text(str(passive_port(ftp)))
    answers, slowest = 0, 0.0
    while not pathlib.Path(f"{name}.stop").exists():
        asked = time.monotonic()
        ftp.voidcmd("NOOP")
        ftp.pwd()
        slowest = max(slowest, time.monotonic() - asked)
        answers += 1
        time.sleep(1)
    return {"answers": answers, "slowest": slowest}


def login_through(ports: str, user: str) -> ftplib.FTP:
    """A session on the node with these ports, such as 50000-50004,50015-50019."""
    ranges = [range(int(first), int(last) + 1) for first, last in (part.split("-") for part in ports.split(","))]
    for _ in range(50):
        ftp = login(user)
        port = passive_port(ftp)
        if any(port in each for each in ranges):
            return ftp
        ftp.close()
    raise SystemExit(f"no session got to the node with the ports {ports}")


def blocks(writer: str, count: int) -> bytes:
    """Content with the writer and the block number in each block of 16 bytes."""
    return b"".join(f"{writer:>4} {number:010}\n".encode() for number in range(count))


def write(mark: str, ports: str, user: str, name: str, writer: str, count: int) -> dict[str, object]:
    """An upload in two halves. The second goes out when the file MARK.go is there; MARK.begun tells that the
    first has gone out, or that the upload was refused. MARK.content is the whole. Returns the last reply's code;
    it is empty if none comes."""
    ftp = login_through(ports, user)
    content = blocks(writer, count)
    pathlib.Path(f"{mark}.content").write_bytes(content)
    half = len(content) // 2
    try:
        connection = ftp.transfercmd(f"STOR {name}")
    except ftplib.error_temp as refused:
        pathlib.Path(f"{mark}.begun").write_text("refused")
        return {"code": str(refused)[:3], "sha256": digest(content)}
    connection.sendall(content[:half])
    pathlib.Path(f"{mark}.begun").write_text("begun")
    wait_for(f"{mark}.go")
    try:
        connection.sendall(content[half:])
    except OSError:
        # The node has closed the data connection; its reply gives the reason.
        pass
    connection.close()
    try:
        code = ftp.getmultiline()[:3]
    except (EOFError, OSError):
        # The node has ended.
        code = ""
    return {"code": code, "sha256": digest(content)}


class Load:
    """Clients that upload, download and compare until the file NAME.stop exists.

    A client whose session ends between transfers, or that is refused, connects again. A transfer
    that broke off, and a file that is not what was confirmed, are losses.
    """

    def __init__(self, stop: str) -> None:
        self.stop = pathlib.Path(stop)
        self.lock = threading.Lock()
        self.transfers = 0
        self.reconnects = 0
        self.losses: list[str] = []
        self.ports: set[int] = set()

    def lose(self, what: str) -> None:
        with self.lock:
            self.losses.append(what)

    def client(self, number: int) -> None:
        ftp: ftplib.FTP | None = None
        name = f"load-{number}"
        stored, exchanges = b"", 0
        while not self.stop.exists():
            try:
                if ftp is None:
                    ftp = login()
                port = passive_port(ftp)
                with self.lock:
                    self.ports.add(port)
            except (EOFError, OSError, ftplib.Error):
                # A session may end between transfers, when the node drains.
                ftp = None
                with self.lock:
                    self.reconnects += 1
                time.sleep(0.5)
                continue
            stored, ftp = self.exchange(ftp, name, stored)
            # Reconnect as real clients do, so that the balancer spreads the sessions again.
            exchanges += 1
            if ftp is not None and exchanges % 3 == 0:
                self.leave(ftp)
                ftp = None

    @staticmethod
    def leave(ftp: ftplib.FTP) -> None:
        try:
            ftp.quit()
        except (EOFError, OSError, ftplib.Error):
            ftp.close()

    def exchange(self, ftp: ftplib.FTP, name: str, stored: bytes) -> tuple[bytes, ftplib.FTP | None]:
        content = os.urandom(300_000)
        try:
            connection, _ = ftp.ntransfercmd(f"STOR {name}")
        except (EOFError, OSError, ftplib.Error) as error:
            # A transfer that was refused with 421 or 450, or by the end of the session, is not lost.
            if isinstance(error, ftplib.error_perm):
                self.lose(f"STOR refused: {error}")
            return stored, None
        try:
            # In pieces, so that a drain happens in the middle of the transfer.
            for start in range(0, len(content), 60_000):
                connection.sendall(content[start : start + 60_000])
                time.sleep(0.3)
            connection.close()
            ftp.voidresp()
        except (EOFError, OSError, ftplib.Error) as error:
            self.lose(f"STOR broke off: {error!r}")
            return b"", None
        try:
            connection, _ = ftp.ntransfercmd(f"RETR {name}")
        except (EOFError, OSError, ftplib.error_temp):
            return content, None
        try:
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            connection.close()
            ftp.voidresp()
        except (EOFError, OSError, ftplib.Error) as error:
            self.lose(f"RETR broke off: {error!r}")
            return content, None
        if b"".join(parts) != content:
            self.lose("RETR gave something else than STOR had taken")
        with self.lock:
            self.transfers += 2
        return content, ftp

    def run(self, clients: int) -> dict[str, object]:
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {
            "transfers": self.transfers,
            "reconnects": self.reconnects,
            "losses": self.losses,
            "ports": sorted(self.ports),
        }


def main(command: str, *arguments: str) -> object:
    match command:
        case "spread":
            return spread(int(arguments[0]))
        case "digest-through":
            return digest_through(arguments[0], arguments[1])
        case "hold":
            return hold(arguments[0])
        case "write":
            mark, ports, user, name, writer, count = arguments
            return write(mark, ports, user, name, writer, int(count))
        case "chat":
            return chat(arguments[0])
        case "load":
            return Load(f"{arguments[0]}.stop").run(int(arguments[1]))
    raise SystemExit(f"what is {command}?")


print(json.dumps(main(*sys.argv[1:])))
