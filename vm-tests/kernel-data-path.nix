# Kernel data path: no process of the balancer touches the data, the nodes see the clients' addresses, and the
# balancer forwards nothing else. All machines share one network, where the shorter way would be wrong.
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
  # The nodes have IPv4 addresses; nginx carries data over IPv6.
  curl = "-4";

  script = ''
    wait_for_cluster()
    for node in ftp_nodes:
        node.wait_for_unit("ftp-node-replies.service")
    balancer.wait_for_unit("ftp-data-path.service")


    def through_kernel() -> int:
        """Bytes that the kernel has forwarded to and from all nodes."""
        table = json.loads(balancer.succeed("nft -j list table inet ftp_data_path"))["nftables"]
        counted = [item for entry in table for item in entry.get("set", {}).get("elem", [])]
        return sum(item["elem"]["counter"]["bytes"] for item in counted)


    def through_nginx() -> int:
        """Data connections that nginx has carried."""
        return int(balancer.succeed("grep -Ec '^[^>]*:500[0-2][0-9] -> ' /var/log/ftp-balancer/access.log || true"))


    with subtest("files go through the kernel in both directions, with EPSV and PASV"):
        sent = make_file("/tmp/file", 2000)
        for flags in ("", "--disable-epsv"):
            for number in range(2):
                before, carried = through_kernel(), through_nginx()
                client.succeed(f"{CURL} {flags} -T /tmp/file {URL}/file")
                client.succeed(f"{CURL} {flags} -o /tmp/back {URL}/file")
                assert hash_of("/tmp/back") == sent
                assert through_kernel() - before > 2 * 2000 * 1024
                assert through_nginx() == carried
        transfers = [metric(node, "ftp_transfers_total") for node in ftp_nodes]
        assert all(transfers), transfers

    with subtest("encrypted data connections go through the kernel"):
        before = through_kernel()
        client.succeed(f"{CURL} --ssl-reqd -T /tmp/file {URL}/protected")
        client.succeed(f"{CURL} --ssl-reqd -o /tmp/back {URL}/protected")
        assert hash_of("/tmp/back") == sent
        assert through_kernel() - before > 2 * 2000 * 1024
        assert through_nginx() == 0

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
        first, _ = slices["ftp1"]
        client.fail("nc -z -w 5 ftp1 21")
        # The port is open for all clients, but the reply goes to the balancer.
        client.fail(f"nc -z -w 5 ftp1 {first}")
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

    with subtest("without the rules nginx carries the data, and the kernel forwards nothing"):
        balancer.succeed("systemctl stop ftp-data-path.service")
        assert balancer.succeed("sysctl -n net.ipv4.conf.all.forwarding").strip() == "0"
        balancer.fail("nft list table inet ftp_data_path")
        assert download("file") == sent
        assert through_nginx() >= 1
        balancer.succeed("systemctl start ftp-data-path.service")
        carried = through_nginx()
        assert download("file") == sent
        assert through_nginx() == carried and through_kernel() > 2000 * 1024

    with subtest("after a crash of the balancer the rules are back"):
        balancer.crash()
        balancer.start()
        balancer.wait_for_unit("ftp-balancer.service", timeout=300)
        wait_for_login()
        before, carried = through_kernel(), through_nginx()
        assert download("file") == sent
        assert through_kernel() - before > 2000 * 1024
        assert through_nginx() == carried

    with subtest("a node whose rules are gone gets them back"):
        for node in ftp_nodes:
            node.succeed("ip rule del pref 5021")
            node.wait_until_succeeds("ip rule | grep 5021", timeout=60)
        assert download("file") == sent
        ftp1.succeed("systemctl stop ftp-node-replies.service")
        assert "5021" not in ftp1.succeed("ip rule; ip route show table all")
  '';
}
