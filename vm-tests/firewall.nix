# Firewall: tries every port of the cluster from each machine and compares with the allowed ones.
let
  # Port of a listener that the configuration does not know.
  python = { pkgs, ... }: { environment.systemPackages = [ pkgs.python3 ]; };
in
{
  machines = {
    ftp1 = python;
    lb = python;
    backend = python;
  };

  script = ''
    wait_for_cluster()

    first, last = 50000, 50029
    # A listener on all addresses that no rule allows.
    for exposed in (ftp1, balancer, auth):
        exposed.succeed("systemd-run --unit=stray python3 -m http.server 8080")
        exposed.wait_for_open_port(8080, timeout=60)

    # Ports, and the machines that may reach each.
    everybody = {"client", "lb", "ftp1", "ftp2", "backend"}
    expected = [
        ("lb", 21, everybody),
        ("lb", first, everybody),
        ("lb", last, everybody),
        ("lb", 50030, set()),
        ("lb", 8080, set()),
        ("lb", 9122, set()),
        ("ftp1", 21, {"lb"}),
        ("ftp1", first, {"lb", "ftp2"}),
        ("ftp1", last, {"lb", "ftp2"}),
        ("ftp1", 9121, set()),
        ("ftp1", 8080, set()),
        ("backend", 5160, {"ftp1", "ftp2"}),
        ("backend", 6379, {"ftp1", "ftp2", "lb"}),
        ("backend", 2049, {"ftp1", "ftp2"}),
        ("backend", 111, set()),
        ("backend", 8080, set()),
    ]
    # Each machine tries all ports at the same time, because a closed port does not answer before a timeout.
    attempts = " ".join(
        f"(nc -z -w 8 {host} {port} && echo {host}:{port}) &" for host, port, _ in expected
    )
    reached = {
        machine.name: machine.succeed(f"{attempts} wait").split()
        for machine in (client, balancer, ftp1, ftp2, auth)
    }
    for host, port, allowed in expected:
        with subtest(f"{host}:{port} is open to {', '.join(sorted(allowed)) or 'nobody'}"):
            for name, open_ports in reached.items():
                if name != host:
                    assert (f"{host}:{port}" in open_ports) == (name in allowed), f"from {name}"

    with subtest("FTP works, including data connections"):
        sent = make_file("/tmp/file", 100)
        upload("/tmp/file", "file")
        assert download("file") == sent

    with subtest("PORT to a privileged port or another address is refused"):
        talk = client.succeed(
            "{ sleep 3; printf 'USER demo\\r\\nPASS secret\\r\\n'; sleep 6;"
            " printf 'PORT 192,168,1,1,0,80\\r\\nPORT 10,9,8,7,200,1\\r\\nQUIT\\r\\n'; sleep 3; } | nc -w 30 lb 21"
        )
        assert "\n200 " not in talk, talk
  '';
}
