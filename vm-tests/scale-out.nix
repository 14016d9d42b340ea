# A third node joins under load, and leaves again. Passive ports are not assigned by hand, and the balancer's
# data path keeps its configuration. No unit of the cluster restarts, and no session or transfer
# ends.
let
  third =
    { nodes, ... }:
    {
      services.distributedFtp.cluster.nodes.ftp3.address = nodes.ftp3.networking.primaryIPAddress;
    };
  grows = {
    specialisation.third.configuration = third;
  };
in
{
  machines = {
    backend = grows;
    ftp1 = grows;
    ftp2 = grows;
    lb = grows;
    ftp3 = third;
  };

  script = ''
    # The units of the existing hosts.
    units = [
        *parts,
        (storage, "nfs-mountd.service"),
    ]


    def invocations() -> list[str]:
        """The invocation ID of a unit: it changes at a restart, not at a reload."""
        return [machine.get_unit_property(unit, "InvocationID") for machine, unit in units]


    def switch(machine: Any) -> None:
        machine.succeed("/run/booted-system/specialisation/third/bin/switch-to-configuration test", timeout=300)


    def relayed_by_nodes() -> float:
        return sum(metric(node, "ftp_relayed_total") for node in (ftp1, ftp2))


    wait_for_cluster()
    with subtest("the nodes lease equal shares of the passive ports"):
        retry(lambda _: port_counts() == {"ftp1": 15, "ftp2": 15}, timeout_seconds=120)

    before = invocations()
    start_session("talking", "chat")
    in_background("load", ftptest("load", "/tmp/load", 4))
    retry(lambda _: sum(metric(node, "ftp_transfers_total") for node in ftp_nodes) >= 6, 180)

    with subtest("no outgoing connection of the host uses a port of the range"):
        for host in (lb, ftp1):
            reserved = host.succeed("sysctl -n net.ipv4.ip_local_reserved_ports").strip()
            assert reserved == "50000-50029", reserved

    with subtest("the file server and the firewalls admit the new node, and it gets its share of the ports"):
        for host in (backend, ftp1, ftp2):
            switch(host)
        ftp3.start()
        ftp3.wait_for_unit("ftpd.service", timeout=300)
        ftp3.succeed("findmnt -t nfs4 /srv/ftp")
        retry(lambda _: port_counts() == {"ftp1": 10, "ftp2": 10, "ftp3": 10}, timeout_seconds=180)

    with subtest("transfers go on through the balancer, which knows nothing of the new node"):
        sent = make_file("/tmp/file", 300)
        for _ in range(4):
            upload("/tmp/file", "file")
            assert download("file") == sent

    with subtest("after a reload of nginx clients reach the new node"):
        switch(lb)
        ftp_nodes.append(ftp3)
        retry(lambda _: "ftp3" in {node_of(p).name for p in answer("spread", 3)}, timeout_seconds=120)

    with subtest("a node that stops gives its ports back, and its clients use the others"):
        ftp3.succeed("systemctl stop ftpd.service", timeout=180)
        retry(lambda _: port_counts() == {"ftp1": 15, "ftp2": 15}, timeout_seconds=180)
        ftp_nodes.remove(ftp3)

    with subtest("no unit was restarted"):
        restarted = [f"{m.name}: {unit}" for (m, unit), a, b in zip(units, before, invocations()) if a != b]
        assert restarted == [], restarted

    with subtest("clients that worked meanwhile lost no transfer and no session of the nodes that stayed"):
        client.succeed("touch /tmp/load.stop")
        result = answer_of("load")
        log.info(f"load: {result}; relayed by nodes: {relayed_by_nodes()}")
        assert result["losses"] == [], result
        assert result["transfers"] >= 12, result
        client.succeed("touch /tmp/talking.stop")
        talking = answer_of("talking")
        assert talking["answers"] >= 10, talking
  '';
}
