# A node is cut off from the network: its sessions end, the other node takes its passive ports, and it
# returns.
{
  script = ''
    wait_for_cluster()
    sent = make_file("/tmp/file", 200)
    upload("/tmp/file", "file")

    with subtest("there is a session on each node"):
        lost = start_session("first", "hold")
        kept, tries = lost, 0
        while kept is lost:
            tries += 1
            assert tries < 10, "all sessions got to one node"
            kept = start_session(f"next{tries}", "hold")

    with subtest("the registry forgets the cut-off node and its sessions"):
        lost.block()
        retry(lambda _: live_nodes() == {kept.name}, timeout_seconds=60)
        assert {s["node"] for s in api("/v1/sessions")} == {kept.name}

    with subtest("clients use the other node"):
        assert download("file") == sent
        client.succeed(f"touch /tmp/next{tries}.go")
        assert answer_of(f"next{tries}")["same"]
        ports = answer("spread", 4)
        assert {node_of(port).name for port in ports} == {kept.name}, ports

    with subtest("the node returns by itself, with a fair share of the passive ports"):
        lost.unblock()
        retry(lambda _: live_nodes() == {"ftp1", "ftp2"}, timeout_seconds=120)
        client.wait_until_succeeds(ftptest("digest-through", ports_of(lost), "file"), timeout=120)
        retry(lambda _: set(port_counts().values()) == {15}, timeout_seconds=120)
        assert lost.get_unit_property("ftpd.service", "NRestarts") == "0"
  '';
}
