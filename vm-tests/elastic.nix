# A third node joins under load, loses power, returns, and drains. Its host is in the description from the
# start, so that no other host changes: passive ports are not assigned by hand, and no file, process or
# balancer is touched.
let
  third =
    { nodes, ... }:
    {
      services.distributedFtp.cluster.nodes.ftp3.address = nodes.ftp3.networking.primaryIPAddress;
    };
in
{
  cluster = third;
  machines.ftp3 = { };

  script = ''
    def invocations() -> list[str]:
        """The invocation ID of a unit: it changes at a restart."""
        return [machine.get_unit_property(unit, "InvocationID") for machine, unit in parts]


    def wait_for_shares(wanted: dict[str, int]) -> None:
        retry(lambda _: port_counts() == wanted, timeout_seconds=180)


    wait_for_cluster()
    with subtest("the nodes lease equal shares of the passive ports"):
        wait_for_shares({"ftp1": 15, "ftp2": 15})

    before = invocations()
    start_session("talking", "chat")
    in_background("load", ftptest("load", "/tmp/load", 4))
    retry(lambda _: sum(metric(node, "ftp_transfers_total") for node in ftp_nodes) >= 6, 180)
    sent = make_file("/tmp/file", 300)

    with subtest("a new node gets its share of the ports, and clients"):
        ftp3.start()
        ftp3.wait_for_unit("ftpd.service", timeout=300)
        wait_for_shares({"ftp1": 10, "ftp2": 10, "ftp3": 10})
        ftp_nodes.append(ftp3)
        retry(lambda _: "ftp3" in {node_of(p).name for p in answer("spread", 3)}, timeout_seconds=120)

    with subtest("a node that drains gives its ports back, and its transfers are not cut"):
        ftp3.succeed("systemctl stop ftpd.service", timeout=180)
        wait_for_shares({"ftp1": 15, "ftp2": 15})
        ftp3.succeed("systemctl start ftpd.service")
        wait_for_shares({"ftp1": 10, "ftp2": 10, "ftp3": 10})

    with subtest("clients that worked meanwhile lost no transfer"):
        client.succeed("touch /tmp/load.stop")
        result = answer_of("load")
        log.info(f"load: {result}")
        assert result["losses"] == [], result
        assert result["transfers"] >= 12, result

    with subtest("the ports of a node that loses power fall to the others, and it returns"):
        ftp3.crash()
        wait_for_shares({"ftp1": 15, "ftp2": 15})
        upload("/tmp/file", "file")
        assert download("file") == sent
        ftp3.start()
        ftp3.wait_for_unit("ftpd.service", timeout=300)
        wait_for_shares({"ftp1": 10, "ftp2": 10, "ftp3": 10})

    with subtest("the balancer sent every data connection to the owner of its port"):
        assert relayed() >= 12
        by_nodes = sum(metric(node, "ftp_relayed_total") for node in (ftp1, ftp2))
        log.info(f"relayed by the balancer: {relayed()}, by nodes: {by_nodes}")
        assert by_nodes <= 0.1 * relayed(), by_nodes

    with subtest("no unit of the other hosts was restarted, and the session of a node that stayed goes on"):
        restarted = [f"{m.name}: {unit}" for (m, unit), a, b in zip(parts, before, invocations()) if a != b]
        assert restarted == [], restarted
        client.succeed("touch /tmp/talking.stop")
        talking = answer_of("talking")
        assert talking["answers"] >= 10, talking
  '';
}
