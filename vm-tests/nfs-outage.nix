# The storage host loses power during an upload.
{
  storage = "storage";

  script = ''
    wait_for_cluster()
    # Both nodes have used the storage, and the client's home exists.
    assert len(answer("spread", 4)) == 4
    sent = make_file("/tmp/up", 3000)
    start_session("quiet", "chat")

    with subtest("a confirmed upload is complete, an unconfirmed one can be resumed"):
        in_background("upload", f"curl -sS --limit-rate 150k -T /tmp/up {URL}/up")
        wait_for_bytes("up", 300_000)
        storage.crash()
        storage.start()
        storage.wait_for_unit("nfs-server.service", timeout=300)
        status = end_of("upload", timeout=600)
        if status == 0:
            log.info("the upload was confirmed")
            assert storage.succeed("sha256sum < /srv/ftp/demo/up").split()[0] == sent
        else:
            log.info("the upload was refused, and goes on")
            client.wait_until_succeeds(f"{CURL} -C - -T /tmp/up {URL}/up", timeout=300)
        assert download("up") == sent

    with subtest("sessions without file access notice nothing"):
        client.succeed("touch /tmp/quiet.stop")
        result = answer_of("quiet")
        log.info(f"quiet: {result}")
        assert result["answers"] >= 10 and result["slowest"] < 10, result

    with subtest("the nodes did not restart"):
        for node in ftp_nodes:
            assert node.get_unit_property("ftpd.service", "NRestarts") == "0"
            node.succeed("systemctl is-active ftpd.service")
  '';
}
