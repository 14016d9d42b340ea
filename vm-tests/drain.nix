# A rolling restart under load loses no transfer.
{
  script = ''
    wait_for_cluster()

    with subtest("all nodes restart while clients work, and no transfer is lost"):
        in_background("load", ftptest("load", "/tmp/load", 4))
        retry(lambda _: sum(metric(node, "ftp_transfers_total") for node in ftp_nodes) >= 8, 180)
        for node in ftp_nodes:
            before = node.get_unit_property("ftpd.service", "MainPID")
            node.succeed("systemctl restart ftpd.service", timeout=180)
            assert node.get_unit_property("ftpd.service", "MainPID") != before
            node.succeed("! journalctl -u ftpd.service --no-pager | grep 'drain_timeout is over'")
            # The next node restarts only when this one has transfers again.
            retry(lambda _: metric(node, "ftp_transfers_total") >= 2, timeout_seconds=180)
        client.succeed("touch /tmp/load.stop")
        result = answer_of("load")
        log.info(f"load: {result}")
        assert result["losses"] == [], result
        assert result["transfers"] >= 20, result

    with subtest("a node that an administrator drains stays stopped until it is started"):
        api("/v1/nodes/ftp1/drain", "POST")
        retry(lambda _: live_nodes() == {"ftp2"}, timeout_seconds=180)
        ftp1.wait_until_fails("systemctl is-active ftpd.service", timeout=60)
        wait_for_login(timeout=60)
        ftp1.succeed("systemctl start ftpd.service")
        retry(lambda _: live_nodes() == {"ftp1", "ftp2"}, timeout_seconds=60)
  '';
}
