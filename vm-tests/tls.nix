# FTPS through the balancer, explicit and implicit: certificates, encrypted data, required TLS.
{
  cluster = {
    imports = [ ./lib/certificate.nix ];
    services.distributedFtp.cluster.tls = {
      implicitPort = 990;
      required = true;
    };
  };
  # The check that waits for the cluster must use TLS too.
  curl = "--ssl-reqd";

  script = ''
    wait_for_cluster()
    sent = make_file("/tmp/file", 500)

    with subtest("explicit TLS: a file comes back unchanged"):
        upload("/tmp/file", "file")
        assert download("file") == sent

    with subtest("the kernel encrypts downloads"):
        def sealed(path):
            return sum(metric(node, f'ftp_tls_downloads_total{{path="{path}"}}') for node in ftp_nodes)

        for node in ftp_nodes:
            # The system has loaded the module; the daemon cannot.
            node.succeed("test -d /sys/module/tls")
        before = sealed("kernel")
        for version in ("1.2", "1.3"):
            flags = f"--tlsv{version} --tls-max {version}"
            for _ in ftp_nodes:
                client.succeed(f"{CURL} {flags} -o /tmp/sealed {URL}/file")
                assert hash_of("/tmp/sealed") == sent, version
        assert sealed("kernel") == before + 4, (before, sealed("kernel"))
        assert sealed("records") == 0

    with subtest("implicit TLS: the same file"):
        client.succeed("curl -sS -o /tmp/implicit ftps://demo:secret@lb:990/file")
        assert hash_of("/tmp/implicit") == sent

    with subtest("both nodes have the file, and the certificate matches the name"):
        for node in ftp_nodes:
            assert metric(node, "ftp_tls_handshakes_total") > 0, node.name
        client.succeed(
            "openssl s_client -connect lb:21 -starttls ftp -verify_return_error -verify_hostname lb < /dev/null"
        )

    with subtest("a login without TLS and an unencrypted transfer are refused"):
        talk = client.succeed(
            "{ sleep 3; printf 'USER demo\\r\\n'; sleep 2; printf 'PASS secret\\r\\n'; sleep 5; } | nc -w 30 lb 21"
        )
        assert "\n230 " not in talk, talk
        client.fail("lftp -u demo,secret -e 'set ssl:verify-certificate no; set ftp:ssl-protect-data no;"
                    " set net:max-retries 1; cat file > /dev/null; bye' lb")

    with subtest("lftp mirrors over TLS, and data connections resume the session"):
        client.succeed("mkdir -p /tmp/tree && cd /tmp/tree && for i in 1 2 3; do head -c 50K /dev/urandom > f$i; done")
        settings = "set ftp:ssl-force yes; set ftp:ssl-protect-data yes; set net:max-retries 3"
        client.succeed(f"lftp -u demo,secret lb -e '{settings}; mirror -R /tmp/tree tree; mirror tree /tmp/back; bye'")
        client.succeed("diff -r /tmp/tree /tmp/back")

    with subtest("a TLS session can be resumed at the other node"):
        # The nodes of a cluster share the ticket keys.
        client.succeed("printf 'QUIT\\r\\n' | openssl s_client -ign_eof -connect lb:990 -sess_out /tmp/session")
        reused = [
            "Reused" in client.succeed("printf 'QUIT\\r\\n' | openssl s_client -ign_eof -connect lb:990 -sess_in /tmp/session")
            for _ in range(4)
        ]
        assert all(reused), reused
  '';
}
