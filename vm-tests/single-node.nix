# All roles on one host: the balancer on the host's address, the node behind it on loopback, generated
# secrets.
# The sandbox of the units. Settings that a user gets from a group.
{
  ftpNodes = [ "server" ];
  balancer = "server";
  auth = "server";
  redis = "server";
  storage = "server";

  cluster =
    { lib, nodes, ... }:
    {
      services.distributedFtp = {
        cluster = {
          nodes.server.address = lib.mkForce "127.0.0.2";
          balancers.server.listenAddresses = [ nodes.server.networking.primaryIPAddress ];
          auth.server.address = lib.mkForce "127.0.0.1";
          redis.address = lib.mkForce "127.0.0.1";
          storage = {
            type = "directory";
            server = lib.mkForce null;
            host = lib.mkForce null;
            export = lib.mkForce null;
          };
        };
        secrets = {
          nodeTokenFile = lib.mkForce null;
          redisPasswordFile = lib.mkForce null;
        };
        users.partner = {
          hashedPasswordFile = "/etc/ftp-secrets/user-demo";
          groups = [ "partners" ];
        };
        groups.partners = {
          directories = [
            {
              path = "/incoming";
              permissions = {
                download = false;
                delete = false;
              };
            }
          ];
          deniedNames = [ "*.exe" ];
          folders = [
            {
              path = "/shared";
              target = "/teams/sales";
            }
          ];
          quota.bytes = 400 * 1024;
          bandwidth.sessionDownload = 100 * 1024;
        };
        ftpd.settings.transfer_log = "/var/log/distributed-ftp/transfers.log";
      };
    };

  script = ''
    wait_for_cluster()

    with subtest("a file comes back unchanged, and is at its place on the storage"):
        sent = make_file("/tmp/file", 300)
        upload("/tmp/file", "file")
        assert download("file") == sent
        server.succeed("test $(stat -c %u:%g:%a /srv/ftp/demo/file) = 2121:2121:640")

    with subtest("secrets are generated, only root can read them, and no unit or log contains them"):
        server.succeed("test $(stat -c %U:%a /var/lib/distributed-ftp-secrets) = root:700")
        for secret in ("nodeToken", "adminToken", "redisPassword"):
            text = server.succeed(f"cat /var/lib/distributed-ftp-secrets/{secret}").strip()
            assert len(text) > 40
            server.fail(f"systemctl show ftpd authd redis-ftp | grep -F '{text}'")
            server.fail(f"journalctl --no-pager | grep -F '{text}'")
        server.succeed("redis-cli get x 2>&1 | grep NOAUTH")

    with subtest("systemd rates the sandbox of both daemons as safe"):
        for unit in ("ftpd", "authd"):
            report = server.succeed(f"systemd-analyze security --no-pager {unit}.service")
            log.info(report)
            line = next(line for line in report.splitlines() if "Overall exposure level" in line)
            assert float(line.split(":")[1].split()[0]) <= 2.0, line

    with subtest("no thread of the daemons has kept a capability, not even the one for port 21"):
        for unit in ("ftpd", "authd"):
            sets = server.succeed(
                f"cat /proc/$(systemctl show -P MainPID {unit})/task/*/status | grep -E '^Cap(Inh|Prm|Eff|Amb)'"
            )
            assert all(int(line.split()[1], 16) == 0 for line in sets.splitlines()), sets

    with subtest("the limits of a group apply to its user"):
        partner = "ftp://partner:secret@server"

        def last_reply(arguments):
            return client.execute(f"{CURL} -o /dev/null -w '%{{response_code}}' {arguments}")[1].strip()

        assert last_reply(f"--ftp-create-dirs -T /tmp/file {partner}/incoming/file") == "226"
        assert last_reply(f"{partner}/incoming/file") == "550"
        assert last_reply(f"-Q 'DELE incoming/file' {partner}/") == "550"
        assert last_reply(f"-T /tmp/file {partner}/Setup.EXE") == "553"

        # The home holds 300 of 400 KiB.
        assert last_reply(f"-T /tmp/file {partner}/more") == "552"
        assert int(server.succeed("cat $(find /srv/ftp/partner -type f) | wc -c")) <= 400 * 1024

        # A shared folder does not count to the home's quota.
        assert last_reply(f"-T /tmp/file {partner}/shared/file") == "226"
        server.succeed("test $(stat -c %s /srv/ftp/teams/sales/file) = $((300 * 1024))")
        took = client.succeed(f"{CURL} -o /tmp/slow -w '%{{time_total}}' {partner}/shared/file")
        assert hash_of("/tmp/slow") == sent
        assert float(took) >= 2, took

    with subtest("the transfer log is written"):
        server.wait_until_succeeds("grep -F file /var/log/distributed-ftp/transfers.log", timeout=30)

    with subtest("after a power failure the host starts by itself, with the same secrets"):
        token = server.succeed("cat /var/lib/distributed-ftp-secrets/nodeToken; sync")
        server.crash()
        server.start()
        wait_for_login()
        assert server.succeed("cat /var/lib/distributed-ftp-secrets/nodeToken") == token
        assert download("file") == sent
  '';
}
