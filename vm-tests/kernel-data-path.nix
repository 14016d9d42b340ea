# Kernel data path: no process of the balancer touches the data, the nodes see the clients' addresses, and the
# balancer forwards nothing else. ftp-relay tells the kernel which node owns a port. All machines share one
# network, where the shorter way would be wrong.
{
  cluster = {
    imports = [ ./lib/certificate.nix ];
    services.distributedFtp.cluster.dataPath = "kernel";
  };
  # The tables work beside both kinds of firewall.
  machines = {
    lb.networking.nftables.enable = true;
    ftp2.networking.nftables.enable = true;
  };
  # The nodes have IPv4 addresses; ftp-relay carries data over IPv6.
  curl = "-4";

  script = ''
    wait_for_cluster()
    for node in ftp_nodes:
        node.wait_for_unit("ftp-node-replies.service")
    balancer.wait_for_unit("ftp-data-path.service")


    def wait_for_owners() -> None:
        """Waits until the rules of the balancer have an owner for each port."""
        retry(lambda _: set(port_counts().values()) == {15}, timeout_seconds=120)
        for port in (50000, 50029):
            balancer.wait_until_succeeds(f"nft get element inet ftp_data_path owners '{{ {port} }}'", timeout=60)


    def through_kernel() -> int:
        """Bytes that the kernel has forwarded to and from all nodes."""
        counters = json.loads(balancer.succeed("nft -j list counters table inet ftp_data_path"))["nftables"]
        return sum(entry["counter"]["bytes"] for entry in counters if "counter" in entry)


    wait_for_owners()

    with subtest("files go through the kernel in both directions, with EPSV and PASV"):
        sent = make_file("/tmp/file", 2000)
        for flags in ("", "--disable-epsv"):
            for number in range(2):
                before, carried = through_kernel(), relayed()
                client.succeed(f"{CURL} {flags} -T /tmp/file {URL}/file")
                client.succeed(f"{CURL} {flags} -o /tmp/back {URL}/file")
                assert hash_of("/tmp/back") == sent
                assert through_kernel() - before > 2 * 2000 * 1024
                assert relayed() == carried
        transfers = [metric(node, "ftp_transfers_total") for node in ftp_nodes]
        assert all(transfers), transfers

    with subtest("encrypted data connections go through the kernel"):
        before, carried = through_kernel(), relayed()
        client.succeed(f"{CURL} --ssl-reqd -T /tmp/file {URL}/protected")
        client.succeed(f"{CURL} --ssl-reqd -o /tmp/back {URL}/protected")
        assert hash_of("/tmp/back") == sent
        assert through_kernel() - before > 2 * 2000 * 1024
        assert relayed() == carried

    with subtest("the session has the client's own address"):
        start_session("session", "hold")
        [session] = api("/v1/sessions")
        assert session["address"] == client_address, session
        client.succeed("touch /tmp/session.go")
        assert answer_of("session")["same"]

    with subtest("a data connection from another address gets no data"):
        in_background(
            "waiting",
            "sh -c '{ sleep 3; printf \"USER demo\\r\\nPASS secret\\r\\n\"; sleep 6;"
            " printf \"EPSV\\r\\n\"; sleep 2; printf \"LIST\\r\\n\"; sleep 20; } | nc -4 -w 60 lb 21'",
        )
        client.wait_until_succeeds("grep '^229 ' /tmp/waiting.out", timeout=60)
        port = client.succeed("grep '^229 ' /tmp/waiting.out").split("|||")[1].split("|")[0]
        stolen = auth.execute(f"nc -4 -w 10 lb {port} < /dev/null | wc -c")[1]
        assert stolen.strip() == "0", stolen
        end_of("waiting")
        refused = sum(metric(node, "ftp_data_connections_refused_total") for node in ftp_nodes)
        assert refused >= 1, refused

    with subtest("clients reach the nodes only through the balancer, which forwards nothing else"):
        client.fail("nc -z -w 5 ftp1 21")
        # The port is open for all clients, but the reply goes to the balancer.
        client.fail("nc -z -w 5 ftp1 50000")
        client.succeed(f"ping -c 1 -W 10 {auth_address}")
        client.succeed(f"ip route add {auth_address}/32 via $(getent ahostsv4 lb | awk 'NR == 1 {{ print $1 }}')")
        client.fail(f"ping -c 1 -W 5 {auth_address}")
        client.succeed(f"ip route del {auth_address}/32")

    with subtest("a transfer survives new rules"):
        in_background("download", f"{CURL} --limit-rate 300k -o /tmp/down {URL}/file")
        client.wait_until_succeeds("test $(stat -c %s /tmp/down || echo 0) -ge 300000", timeout=120)
        balancer.succeed("systemctl reload ftp-data-path.service")
        assert end_of("download") == 0
        assert hash_of("/tmp/down") == sent
        # New rules keep the owners of the ports.
        before, carried = through_kernel(), relayed()
        assert download("file") == sent
        assert through_kernel() - before > 2000 * 1024 and relayed() == carried

    with subtest("without the rules ftp-relay carries the data, and the kernel forwards nothing"):
        carried = relayed()
        balancer.succeed("systemctl stop ftp-data-path.service")
        assert balancer.succeed("sysctl -n net.ipv4.conf.all.forwarding").strip() == "0"
        balancer.fail("nft list table inet ftp_data_path")
        assert download("file") == sent
        assert relayed() > carried
        balancer.succeed("systemctl start ftp-data-path.service")
        wait_for_owners()
        carried = relayed()
        assert download("file") == sent
        assert relayed() == carried and through_kernel() > 2000 * 1024

    with subtest("the kernel follows when a node stops and starts"):
        ftp2.succeed("systemctl stop ftpd.service", timeout=180)
        retry(lambda _: port_counts() == {"ftp1": 30}, timeout_seconds=120)
        address = ftp1.succeed("getent ahostsv4 ftp1").split()[0]
        balancer.wait_until_succeeds(
            f"nft get element inet ftp_data_path owners '{{ 50029 }}' | grep -F {address}", timeout=60
        )
        assert download("file") == sent
        ftp2.succeed("systemctl start ftpd.service")
        wait_for_owners()
        assert download("file") == sent

    with subtest("after a crash of the balancer the rules are back"):
        balancer.crash()
        balancer.start()
        balancer.wait_for_unit("ftp-balancer.service", timeout=300)
        wait_for_login()
        wait_for_owners()
        before, carried = through_kernel(), relayed()
        assert download("file") == sent
        assert through_kernel() - before > 2000 * 1024
        assert relayed() == carried

    with subtest("a node whose rules are gone gets them back"):
        for node in ftp_nodes:
            node.succeed("ip rule del pref 5021")
            node.wait_until_succeeds("ip rule | grep 5021", timeout=60)
        assert download("file") == sent
        ftp1.succeed("systemctl stop ftp-node-replies.service")
        assert "5021" not in ftp1.succeed("ip rule; ip route show table all")
  '';
}
