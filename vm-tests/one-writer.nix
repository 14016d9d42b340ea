# Two nodes write the same path on NFS while the first one is paused or cut off from Redis, or Redis loses its
# data: the path holds the bytes of one upload, and no confirmed upload is lost.
{
  redis = "redis";

  cluster = {
    services.distributedFtp = {
      users.safe = {
        hashedPasswordFile = "/etc/ftp-secrets/user-demo";
        home = "/demo";
        uploads = "atomic";
      };
      # Long enough for slow machines to notice a fault.
      ftpd.settings.stall_timeout = "10m";
    };
  };

  # The watchdog would kill a process that is stopped for longer; this test continues it.
  machines.ftp1 =
    { lib, ... }:
    {
      systemd.services.ftpd.serviceConfig.WatchdogSec = lib.mkForce "infinity";
    };

  script = ''
    wait_for_cluster()
    redis_address = client.succeed("getent ahostsv4 redis").split()[0]
    count = 40_000


    def start(mark: str, node: Any, user: str, name: str, writer: str) -> str:
        """Begins an upload on a node. Returns whether it has begun or was refused."""
        mark = f"/tmp/{mark}"
        command = ftptest("write", mark, ports_of(node), user, name, writer, count)
        in_background(mark.removeprefix("/tmp/"), command)
        client.wait_until_succeeds(f"test -s {mark}.begun", timeout=120)
        return client.succeed(f"cat {mark}.begun")


    def end(mark: str) -> tuple[str, str]:
        """Ends an upload. Returns its last reply and the hash of its content."""
        client.succeed(f"touch /tmp/{mark}.go")
        result = answer_of(mark)
        return result["code"], result["sha256"]


    def stored(name: str) -> str:
        return storage.succeed(f"sha256sum < /srv/ftp/demo/{name}").split()[0]


    def is_beginning(name: str, mark: str) -> bool:
        """True if the file is missing or holds only the first bytes of this upload."""
        size = int(storage.succeed(f"stat -c %s /srv/ftp/demo/{name} || echo -1"))
        return size < 0 or stored(name) == hash_of(f"<(head -c {size} /tmp/{mark}.content)")


    def redis_cli(command: str) -> None:
        password = redis.succeed("cat /etc/ftp-secrets/redis-password").strip()
        redis.succeed(f"REDISCLI_AUTH='{password}' redis-cli {command}")


    def pause() -> None:
        ftp1.succeed("systemctl kill -s STOP ftpd.service")
        retry(lambda _: live_nodes() == {"ftp2"}, timeout_seconds=60)


    def cut() -> None:
        ftp1.succeed(f"ip route add blackhole {redis_address}/32")
        retry(lambda _: live_nodes() == {"ftp2"}, timeout_seconds=60)


    faults = {
        "pause": (pause, lambda: ftp1.succeed("systemctl kill -s CONT ftpd.service")),
        "cut": (cut, lambda: ftp1.succeed(f"ip route del blackhole {redis_address}/32")),
        "flush": (lambda: redis_cli("flushall"), lambda: None),
    }

    for user, mode in (("demo", "direct"), ("safe", "atomic")):
        for fault, (begin_fault, end_fault) in faults.items():
            with subtest(f"{mode}, {fault}: the path holds one upload"):
                name = f"{mode}-{fault}"
                assert start(f"{name}-a", ftp1, user, name, "A") == "begun"
                begin_fault()
                started = start(f"{name}-b", ftp2, user, name, "B")
                b_code, b_hash = end(f"{name}-b")
                log.info(f"{name}: B has {started}, and was told {b_code}")
                # B's file is complete before A can write again.
                assert b_code != "226" or stored(name) == b_hash
                end_fault()
                a_code, a_hash = end(f"{name}-a")
                log.info(f"{name}: A was told {a_code}")
                confirmed = {sent for code, sent in ((a_code, a_hash), (b_code, b_hash)) if code == "226"}
                if confirmed:
                    assert stored(name) in confirmed, "a confirmed upload is not what the file holds"
                else:
                    assert is_beginning(name, f"{name}-a") or is_beginning(name, f"{name}-b"), "the file is a mix"
                retry(lambda _: live_nodes() == {"ftp1", "ftp2"}, timeout_seconds=120)

            with subtest(f"{mode}, {fault}: the path can be written again"):
                sent = make_file("/tmp/again", 100)
                again = f"{CURL} -T /tmp/again ftp://{user}:secret@{balancer.name}/{name}"
                client.wait_until_succeeds(again, timeout=180)
                assert stored(name) == sent

    with subtest("a file that is being written, and the directory above it, cannot be renamed"):
        storage.succeed("install -d -o 2121 -g 2121 -m 0750 /srv/ftp/demo/d")
        for user in ("demo", "safe"):
            sent = make_file("/tmp/before", 100)
            client.succeed(f"{CURL} -T /tmp/before {URL}/d/file")
            assert start(f"rename-{user}", ftp1, user, "d/file", "A") == "begun"
            for old, new in (("d/file", "d/other"), ("d", "e")):
                client.fail(f"{CURL} -Q 'RNFR {old}' -Q 'RNTO {new}' {URL}/ > /dev/null")
                storage.fail(f"test -e /srv/ftp/demo/{new}")
            code, content = end(f"rename-{user}")
            assert code == "226", code
            assert stored("d/file") == content
  '';
}
