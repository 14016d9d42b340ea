# A third node joins under load: each host switches to the configuration with the new node, in the documented
# order. No unit of the cluster restarts, and no session or transfer ends.
let
  third =
    { nodes, ... }:
    {
      services.distributedFtp.cluster.nodes.ftp3 = {
        address = nodes.ftp3.networking.primaryIPAddress;
        passivePorts = {
          from = 50020;
          to = 50029;
        };
      };
    };
  grows = {
    specialisation.third.configuration = third;
  };
in
{
  # Slices set by hand, so that a new node does not move them.
  cluster.services.distributedFtp.cluster.nodes = {
    ftp1.passivePorts = {
      from = 50000;
      to = 50009;
    };
    ftp2.passivePorts = {
      from = 50010;
      to = 50019;
    };
  };

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


    wait_for_cluster()
    before = invocations()
    start_session("talking", "chat")
    in_background("load", ftptest("load", "/tmp/load", 4))
    retry(lambda _: sum(metric(node, "ftp_transfers_total") for node in ftp_nodes) >= 6, 180)

    with subtest("no outgoing connection of the host uses a port of the range"):
        for host in (lb, ftp1):
            reserved = host.succeed("sysctl -n net.ipv4.ip_local_reserved_ports").strip()
            assert reserved == "50000-50029", reserved

    with subtest("the backend host admits the new node"):
        switch(backend)
        ftp3.start()
        ftp3.wait_for_unit("ftpd.service", timeout=300)
        ftp3.succeed("findmnt -t nfs4 /srv/ftp")
        retry(lambda _: live_nodes() == {"ftp1", "ftp2", "ftp3"}, timeout_seconds=60)

    with subtest("the balancer sends clients to the new node"):
        for host in (ftp1, ftp2, lb):
            switch(host)
        slices["ftp3"] = (50020, 50029)
        ftp_nodes.append(ftp3)
        retry(lambda _: "ftp3" in {node_of(p).name for p in answer("spread", 3)}, timeout_seconds=120)

    with subtest("no unit was restarted"):
        restarted = [f"{m.name}: {unit}" for (m, unit), a, b in zip(units, before, invocations()) if a != b]
        assert restarted == [], restarted

    with subtest("clients that worked meanwhile lost no transfer and no session"):
        client.succeed("touch /tmp/load.stop")
        result = answer_of("load")
        log.info(f"load: {result}")
        assert result["losses"] == [] and result["reconnects"] == 0, result
        assert result["transfers"] >= 12, result
        client.succeed("touch /tmp/talking.stop")
        talking = answer_of("talking")
        assert talking["answers"] >= 10, talking
  '';
}
