# Redis stops and returns: sessions go on, new ones are admitted, API users survive.
{
  script = ''
    wait_for_cluster()
    api("/v1/users", "POST", json.dumps({"name": "ann", "password": "hers-and-long"}))
    client.succeed(f"{CURL} ftp://ann:hers-and-long@lb/")
    start_session("session", "hold")
    # appendfsync everysec: after this time all confirmed writes are on disk.
    redis.succeed("sleep 2")

    with subtest("while Redis is down new sessions are admitted, and transfers work"):
        redis.succeed("systemctl kill -s KILL redis-ftp.service && systemctl stop redis-ftp.service")
        sent = make_file("/tmp/away", 100)
        client.wait_until_succeeds(f"{CURL} -T /tmp/away {URL}/away", timeout=60)
        assert download("away") == sent
        assert any("admitted" in line or "away" in line for line in ftp1.succeed(
            "journalctl -u ftpd.service --no-pager"
        ).splitlines())

    with subtest("the existing session works"):
        client.succeed("touch /tmp/session.go")
        result = answer_of("session")
        assert result["same"] and result["listed"], result

    with subtest("nodes, sessions and API users are back with Redis"):
        start_session("second", "hold")
        redis.succeed("systemctl start redis-ftp.service")
        retry(lambda _: live_nodes() == {"ftp1", "ftp2"}, timeout_seconds=60)
        retry(lambda _: [s["user"] for s in api("/v1/sessions")] == ["demo"], timeout_seconds=60)
        client.succeed(f"{CURL} ftp://ann:hers-and-long@lb/")
        client.succeed("touch /tmp/second.go")
        assert answer_of("second")["same"]

    with subtest("Redis persists its data and evicts nothing"):
        # With the configuration file of the unit.
        password = redis.succeed("cat /etc/ftp-secrets/redis-password").strip()
        settings = redis.succeed(
            f"REDISCLI_AUTH='{password}' redis-cli config get appendonly;"
            f"REDISCLI_AUTH='{password}' redis-cli config get maxmemory-policy"
        ).split()
        assert settings == ["appendonly", "yes", "maxmemory-policy", "noeviction"], settings
  '';
}
