"""Runs Python's ftplib against a server in passive and active mode, and compares hashes of the files."""

import ftplib
import hashlib
import io
import random
import sys

host, port = sys.argv[1], int(sys.argv[2])
content = random.Random(1).randbytes(5_000_000)


def fetched(ftp, path, **options):
    parts = []
    ftp.retrbinary(f"RETR {path}", parts.append, **options)
    return b"".join(parts)


def same(one, other):
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest(), (len(one), len(other))


def expect_error(kind, action, *arguments):
    try:
        action(*arguments)
    except kind:
        return
    raise AssertionError(f"{action} {arguments} did not fail")


for passive in (True, False):
    with ftplib.FTP(timeout=30, encoding="utf-8") as ftp:
        ftp.connect(host, port)
        ftp.login("demo", "anything")
        # Active mode works because the node can connect to the client: both are on loopback.
        ftp.set_pasv(passive)
        expect_error(ftplib.error_perm, ftp.sendcmd, "PORT 192,0,2,1,200,10")
        assert ftp.pwd() == "/"
        assert ftp.mkd("größe und \"zeichen\"").endswith("größe und \"zeichen\"")
        ftp.cwd("größe und \"zeichen\"")
        assert ftp.pwd() == "/größe und \"zeichen\""
        ftp.storbinary("STOR file.bin", io.BytesIO(content))
        same(fetched(ftp, "file.bin"), content)
        same(fetched(ftp, "file.bin", rest=1_234_567), content[1_234_567:])
        assert ftp.size("file.bin") == len(content)

        ftp.storbinary("STOR half.bin", io.BytesIO(content[:2_000_000]))
        ftp.storbinary("STOR half.bin", io.BytesIO(content[2_000_000:]), rest=2_000_000)
        same(fetched(ftp, "half.bin"), content)
        ftp.storbinary("STOR tail.bin", io.BytesIO(content[:1000]))
        ftp.storbinary("APPE tail.bin", io.BytesIO(content[1000:]))
        same(fetched(ftp, "tail.bin"), content)

        ftp.storlines("STOR text.txt", io.BytesIO(b"one\ntwo\n"))
        lines = []
        ftp.retrlines("RETR text.txt", lines.append)
        assert lines == ["one", "two"], lines

        assert sorted(ftp.nlst()) == ["file.bin", "half.bin", "tail.bin", "text.txt"]
        facts = dict(ftp.mlsd(facts=["type", "size"]))
        assert facts["file.bin"] == {"type": "file", "size": str(len(content))}, facts
        ftp.rename("tail.bin", "renamed.bin")
        expect_error(ftplib.error_perm, ftp.size, "tail.bin")
        for name in ftp.nlst():
            ftp.delete(name)
        ftp.cwd("..")
        ftp.rmd("größe und \"zeichen\"")
        expect_error(ftplib.error_perm, ftp.cwd, "größe und \"zeichen\"")

        # The session still works after an aborted download.
        ftp.storbinary("STOR file.bin", io.BytesIO(content * 4))
        ftp.voidcmd("TYPE I")
        with ftp.transfercmd("RETR file.bin") as data:
            data.recv(1000)
            reply = ftp.abort()
        assert reply[:3] in ("426", "226"), reply
        if reply[:3] == "426":
            ftp.voidresp()
        assert ftp.pwd() == "/"
        ftp.delete("file.bin")

print("all right")
