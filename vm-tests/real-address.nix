# The nodes see the client's address, and accept it only from the balancer.
{
  script = ''
    wait_for_cluster()

    with subtest("authd shows the client's own address"):
        start_session("session", "hold")
        [session] = api("/v1/sessions")
        assert session["address"] == client_address and session["user"] == "demo", session
        client.succeed("touch /tmp/session.go")
        assert answer_of("session")["same"]

    with subtest("the node's log has the client's address"):
        logs = "".join(node.succeed("journalctl -u ftpd.service --no-pager") for node in ftp_nodes)
        assert f"address={client_address}" in logs, logs

    forged = r"PROXY TCP4 203.0.113.99 203.0.113.1 40000 21\r\n"

    with subtest("a PROXY header from a client ends its connection"):
        talk = client.succeed(
            f"{{ sleep 3; printf '{forged}'; sleep 1; printf 'USER demo\\r\\nPASS secret\\r\\n';"
            " sleep 6; printf 'QUIT\\r\\n'; sleep 2; } | nc -w 30 lb 21"
        )
        assert "220 " in talk and "331 " not in talk and "230 " not in talk, talk
        logs = "".join(node.succeed("journalctl -u ftpd.service --no-pager") for node in ftp_nodes)
        assert "203.0.113.99" not in logs, logs

    with subtest("a PROXY header from another host is refused, even without a firewall"):
        talk = ftp1.succeed(
            f"{{ sleep 2; printf '{forged}'; sleep 2; printf 'QUIT\\r\\n'; sleep 2; }} | nc -w 30 ftp1 21"
        )
        assert "220 " in talk and "221 " not in talk, talk
        assert "203.0.113.99" not in ftp1.succeed("journalctl -u ftpd.service --no-pager")

    with subtest("a data connection from another address gets no data"):
        in_background(
            "waiting",
            "sh -c '{ sleep 3; printf \"USER demo\\r\\nPASS secret\\r\\n\"; sleep 6;"
            " printf \"EPSV\\r\\n\"; sleep 2; printf \"LIST\\r\\n\"; sleep 20; } | nc -w 60 lb 21'",
        )
        client.wait_until_succeeds("grep '^229 ' /tmp/waiting.out", timeout=60)
        port = client.succeed("grep '^229 ' /tmp/waiting.out").split("|||")[1].split("|")[0]
        # The backend connects to the port that the client reserved.
        stolen = auth.execute(f"nc -w 10 lb {port} < /dev/null | wc -c")[1]
        assert stolen.strip() == "0", stolen
        end_of("waiting")
        refused = sum(metric(node, "ftp_data_connections_refused_total") for node in ftp_nodes)
        assert refused >= 1, refused
  '';
}
