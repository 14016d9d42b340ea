# A node loses power during an upload and a download; the client resumes through another node.
{
  script = ''
    wait_for_cluster()
    size = 3000 * 1024

    with subtest("an upload resumes through another node after its node died"):
        sent = make_file("/tmp/up", 3000)
        in_background("upload", f"{CURL} --limit-rate 150k -T /tmp/up {URL}/up")
        wait_for_bytes("up", 300_000)
        dead = node_with_transfer()
        dead.crash()
        assert end_of("upload") != 0, "an upload that broke off was confirmed"
        here = int(storage.succeed("stat -c %s /srv/ftp/demo/up"))
        assert 0 < here < size, here
        # The dead node's write lease must expire first.
        client.wait_until_succeeds(f"{CURL} -C - -T /tmp/up {URL}/up", timeout=180)
        assert download("up") == sent
        dead.start()
        dead.wait_for_unit("ftpd.service", timeout=300)

    with subtest("a download resumes through another node after its node died"):
        in_background("download", f"{CURL} --limit-rate 150k -o /tmp/down {URL}/up")
        client.wait_until_succeeds("test $(stat -c %s /tmp/down || echo 0) -ge 300000", timeout=120)
        dead = node_with_transfer()
        dead.crash()
        assert end_of("download") != 0, "a download that broke off seemed whole"
        here = int(client.succeed("stat -c %s /tmp/down"))
        assert 0 < here < size, here
        client.wait_until_succeeds(f"{CURL} -C - -o /tmp/down {URL}/up", timeout=180)
        assert hash_of("/tmp/down") == sent

    with subtest("the dead node leaves the registry, and returns after its boot"):
        alive = {node.name for node in ftp_nodes} - {dead.name}
        retry(lambda _: live_nodes() == alive, timeout_seconds=60)
        dead.start()
        dead.wait_for_unit("ftpd.service", timeout=300)
        retry(lambda _: dead.name in live_nodes(), timeout_seconds=60)
  '';
}
