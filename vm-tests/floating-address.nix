# Two balancers with a floating address: it leaves a balancer that fails or crashes, and does not come back.
let
  address = "192.168.1.200";
in
{
  cluster =
    { lib, nodes, ... }:
    {
      services.distributedFtp.cluster = {
        externalAddress = lib.mkForce address;
        balancers.lb2.address = nodes.lb2.networking.primaryIPAddress;
        # One of them listens on the floating address only, which it does not have at its start.
        balancers.lb2.listenAddresses = [ address ];
        floatingAddress = {
          inherit address;
          interface = "eth1";
        };
      };
    };

  machines.lb2 = { };

  script = ''
    address = "${address}"
    files = f"ftp://demo:secret@{address}"


    def holders(machines: list[Any]) -> list[str]:
        """The names of the machines that have the floating address."""
        show = f"ip -4 -o address show dev eth1 | grep -wF {address}"
        return [machine.name for machine in machines if machine.execute(show)[0] == 0]


    def moves_to(machine: Any, running: list[Any]) -> None:
        retry(lambda _: holders(running) == [machine.name], timeout_seconds=120)


    lb2.start()
    wait_for_cluster()
    for machine in (lb, lb2):
        machine.wait_for_unit("ftp-balancer.service", timeout=120)
        machine.wait_for_unit("ftp-relay.service", timeout=120)
        # A timer starts it some seconds after the boot.
        machine.wait_until_succeeds("systemctl is-active keepalived.service", timeout=120)
    sent = make_file("/tmp/file", 300)

    with subtest("one balancer has the address, and clients work through it"):
        retry(lambda _: len(holders([lb, lb2])) == 1, timeout_seconds=120)
        client.wait_until_succeeds(f"{CURL} -T /tmp/file {files}/first", timeout=120)
        first, other = (lb, lb2) if holders([lb, lb2]) == ["lb"] else (lb2, lb)

    with subtest("a restart of ftp-relay does not move the address"):
        first.succeed("systemctl restart ftp-relay.service")
        first.succeed("sleep 20")
        assert holders([lb, lb2]) == [first.name]

    with subtest("the address leaves a balancer whose ftp-relay stays away"):
        first.succeed("systemctl stop ftp-relay.service")
        moves_to(other, [lb, lb2])
        client.wait_until_succeeds(f"{CURL} -T /tmp/file {files}/second", timeout=60)

    with subtest("the address stays when that balancer works again"):
        first.succeed("systemctl start ftp-relay.service")
        first.wait_until_succeeds("curl -sf http://127.0.0.1:9122/readyz", timeout=60)
        first.succeed("sleep 15")
        assert holders([lb, lb2]) == [other.name]

    with subtest("the address stays while no balancer works"):
        # One after another, and each for longer than the health checks take to notice it.
        for machine in (first, other):
            machine.succeed("systemctl stop ftp-relay.service")
            machine.succeed("sleep 25")
            assert holders([lb, lb2]) == [other.name]
        for machine in (other, first):
            machine.succeed("systemctl start ftp-relay.service")
            machine.wait_until_succeeds("curl -sf http://127.0.0.1:9122/readyz", timeout=60)
            machine.succeed("sleep 10")
            assert holders([lb, lb2]) == [other.name]

    with subtest("the address leaves a balancer that crashes"):
        other.crash()
        moves_to(first, [first])
        got = client.wait_until_succeeds(f"{CURL} {files}/second | sha256sum", timeout=60).split()[0]
        assert got == sent, got
  '';
}
