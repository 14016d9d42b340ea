# Three nodes, balancer, authd, Redis and storage, each on a separate machine: the walk-through of the
# replaced system's README, and a start in the worst order.
{
  ftpNodes = [
    "ftp1"
    "ftp2"
    "ftp3"
  ];
  auth = "auth";
  redis = "redis";
  storage = "storage";

  script = ''
    wait_for_cluster()

    with subtest("a client gets the greeting, logs in, sends PWD and LIST"):
        talk = client.succeed(
            "{ sleep 3; printf 'USER demo\\r\\n'; sleep 3; printf 'PASS secret\\r\\n'; sleep 6;"
            " printf 'PWD\\r\\nQUIT\\r\\n'; sleep 3; } | nc -w 30 lb 21"
        )
        for reply in ("220 ", "331 ", "230 ", '257 "/"', "221 "):
            assert reply in talk, talk
        client.succeed(f"{CURL} -v {URL}/ 2>&1 | grep -E '^< 226'")
        client.fail(f"{CURL} ftp://demo:wrong@lb/")

    with subtest("a file uploaded through one node is the same through all others"):
        sent = make_file("/tmp/shared", 700)
        upload("/tmp/shared", "shared")
        for node in ftp_nodes:
            assert answer("digest-through", ports_of(node), "shared") == sent, node.name

    with subtest("sessions spread over all nodes, and data connections reach their node"):
        ports = answer("spread", 12)
        assert {node_of(port).name for port in ports} == {"ftp1", "ftp2", "ftp3"}, ports

    with subtest("lftp mirrors a directory in both directions"):
        client.succeed(
            "mkdir -p /tmp/tree/deep && cd /tmp/tree && for i in 1 2 3 4 5 6;"
            " do head -c 20K /dev/urandom > file$i; head -c 5K /dev/urandom > deep/file$i; done"
        )
        settings = "set ftp:ssl-allow no; set net:timeout 60; set net:max-retries 3"
        client.succeed(f"lftp -u demo,secret lb -e '{settings}; mirror -R -P 3 /tmp/tree tree; bye'")
        client.succeed(f"lftp -u demo,secret lb -e '{settings}; mirror -P 3 tree /tmp/back; bye'")
        client.succeed("diff -r /tmp/tree /tmp/back")

    with subtest("while one node is down the others serve, and the node returns"):
        ftp2.succeed("systemctl stop ftpd.service")
        for _ in range(4):
            assert download("shared") == sent
        ftp2.succeed("systemctl start ftpd.service")
        retry(lambda _: "ftp2" in live_nodes(), timeout_seconds=60)
        client.wait_until_succeeds(ftptest("digest-through", ports_of(ftp2), "shared"), timeout=60)

    with subtest("Redis and authd know the nodes"):
        assert live_nodes() == {"ftp1", "ftp2", "ftp3"}

    with subtest("after a power failure the cluster starts by itself, with the storage last"):
        storage.succeed("sync")
        everything = (*ftp_nodes, balancer, auth, redis, storage)
        for machine in everything:
            machine.crash()
        for machine in everything:
            machine.start()
        wait_for_login(timeout=600)
        for node in ftp_nodes:
            node.wait_for_unit("ftpd.service", timeout=300)
            node.succeed("findmnt -t nfs4 /srv/ftp")
        assert download("shared") == sent
  '';
}
