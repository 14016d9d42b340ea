# Redis goes away and comes back: sessions go on, new ones are admitted, API users outlive it.
{
  script = ''
    wait_for_cluster()
    api("/v1/users", "POST", json.dumps({"name": "ann", "password": "hers-and-long"}))
    client.succeed(f"{CURL} ftp://ann:hers-and-long@lb/")
    start_session("session", "hold")
    # appendfsync everysec: what was confirmed is on the disk after this.
    redis.succeed("sleep 2")

    with subtest("while Redis is away new sessions are admitted, and transfers work"):
        redis.succeed("systemctl kill -s KILL redis-ftp.service && systemctl stop redis-ftp.service")
        sent = make_file("/tmp/away", 100)
        client.wait_until_succeeds(f"{CURL} -T /tmp/away {URL}/away", timeout=60)
        assert download("away") == sent
        assert any("admitted" in line or "away" in line for line in ftp1.succeed(
            "journalctl -u ftpd.service --no-pager"
        ).splitlines())

    with subtest("the session that was there works"):
        client.succeed("touch /tmp/session.go")
        result = answer_of("session")
        assert result["same"] and result["listed"], result

    with subtest("nodes, sessions and API users are there again when Redis is back"):
        start_session("second", "hold")
        redis.succeed("systemctl start redis-ftp.service")
        retry(lambda _: live_nodes() == {"ftp1", "ftp2"}, timeout_seconds=60)
        retry(lambda _: [s["user"] for s in api("/v1/sessions")] == ["demo"], timeout_seconds=60)
        client.succeed(f"{CURL} ftp://ann:hers-and-long@lb/")
        client.succeed("touch /tmp/second.go")
        assert answer_of("second")["same"]

    with subtest("Redis keeps what it must, and evicts nothing"):
        # Through the file that the unit itself reads.
        password = redis.succeed("cat /etc/ftp-secrets/redis-password").strip()
        settings = redis.succeed(
            f"REDISCLI_AUTH='{password}' redis-cli config get appendonly;"
            f"REDISCLI_AUTH='{password}' redis-cli config get maxmemory-policy"
        ).split()
        assert settings == ["appendonly", "yes", "maxmemory-policy", "noeviction"], settings
  '';
}
