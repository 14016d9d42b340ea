# Administrators, the page, ftpctl and the audit trail on one host: the firewall in front of the page, roles,
# the trail's files. And the log level, which changes without a restart.
let
  # For tests only: real tokens are random.
  tokens = {
    ann = "a token for Ann";
    viv = "a token for Viv";
  };
in
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
          redis.address = lib.mkForce "127.0.0.1";
          storage = {
            type = "directory";
            server = lib.mkForce null;
            host = lib.mkForce null;
            export = lib.mkForce null;
          };
        };
        administrators = {
          ann.tokenSha256 = builtins.hashString "sha256" tokens.ann;
          viv = {
            role = "viewer";
            tokenSha256 = builtins.hashString "sha256" tokens.viv;
          };
        };
        audit.log = "file";
        backup = {
          enable = true;
          keep = 2;
        };
        console.allowFrom = [ "${nodes.client.networking.primaryIPAddress}/32" ];
      };
    };

  machines = {
    client =
      { config, ... }:
      {
        environment.systemPackages = [ config.services.distributedFtp.package ];
      };
    # The firewall does not let this host in.
    outsider.services.distributedFtp.enable = false;
  };

  script = ''
    page = f"http://{auth_address}:5160"
    ftpd_trail, authd_trail = "/var/log/distributed-ftp/audit.log", "/var/log/authd/audit.log"


    def request(cookies: str, arguments: str, path: str) -> tuple[str, str]:
        """Sends a request as a browser with these cookies. Returns the status and the body."""
        answer = client.succeed(
            f"curl -sS -b /tmp/{cookies} -c /tmp/{cookies} -w '\n%{{http_code}}' {arguments} {page}{path}"
        )
        body, _, status = answer.rpartition("\n")
        return status.strip(), body


    def log_in(name: str, token: str) -> str:
        """Logs in to the page. Returns the CSRF token."""
        body = shlex.quote(json.dumps({"name": name, "token": token}))
        status, text = request(name, f"-H 'Content-Type: application/json' -d {body}", "/page/session")
        assert status == "200", (status, text)
        return str(json.loads(text)["csrf"])


    wait_for_cluster()
    outsider.start()
    outsider.wait_for_unit("multi-user.target", timeout=300)
    sent = make_file("/tmp/file", 300)
    upload("/tmp/file", "file")

    with subtest("the firewall lets one host in to the page"):
        status, text = request("nobody", "", "/")
        assert status == "200" and "<script" in text, (status, text)
        status, text = request("nobody", "", "/v1/status")
        assert status == "401", (status, text)
        outsider.fail(f"curl -sS --max-time 10 {page}/")

    with subtest("an administrator and a viewer log in to the page; the viewer changes nothing"):
        new_user = "-X PUT -H 'Content-Type: application/json' -d '{\"home\": \"/carl\", \"password\": \"a long enough password\"}'"
        csrf = log_in("viv", "${tokens.viv}")
        status, text = request("viv", "", "/v1/sessions")
        assert status == "200", (status, text)
        status, text = request("viv", f"-H 'X-CSRF-Token: {csrf}' {new_user}", "/v1/users/carl")
        assert status == "403", (status, text)
        csrf = log_in("ann", "${tokens.ann}")
        status, text = request("ann", f"-H 'X-CSRF-Token: {csrf}' {new_user}", "/v1/users/carl")
        assert status in ("200", "201"), (status, text)
        client.succeed(f"{CURL} -T /tmp/file 'ftp://carl:a%20long%20enough%20password@server/file'")

    with subtest("ftpctl works with an administrator's token"):
        client.succeed("echo ${tokens.ann} > /tmp/token; chmod 600 /tmp/token")
        ftpctl = f"ftpctl --url {page} --token-file /tmp/token"
        status = json.loads(client.succeed(f"{ftpctl} status --json"))
        assert "server" in json.dumps(status), status
        assert "carl" in client.succeed(f"{ftpctl} users list")

    with subtest("the trail has what clients and administrators did; everybody but its owner is kept out"):
        server.wait_until_succeeds(f"grep -F '\"event\":\"upload\"' {ftpd_trail} | grep carl", timeout=30)
        server.wait_until_succeeds(f"grep -F '\"event\":\"admin\"' {authd_trail} | grep ann | grep carl", timeout=30)
        server.fail(f"grep -hF -e '${tokens.ann}' -e 'long enough' {ftpd_trail} {authd_trail}")
        assert server.succeed(f"stat -c %U:%a {ftpd_trail}").strip() == "distributed-ftp:640"
        assert server.succeed(f"stat -L -c %a {authd_trail}").strip() == "640"

    with subtest("after a rotation the trail goes on in a new file"):
        pids = {unit: server.get_unit_property(f"{unit}.service", "MainPID") for unit in ("ftpd", "authd")}
        server.succeed(f"mv {ftpd_trail} {ftpd_trail}.1; mv {authd_trail} {authd_trail}.1")
        server.succeed("systemctl reload ftpd.service authd.service")
        server.wait_until_succeeds(f"test -e {ftpd_trail} -a -e {authd_trail}", timeout=30)
        assert download("file") == sent
        server.wait_until_succeeds(f"grep -F '\"event\":\"download\"' {ftpd_trail}", timeout=30)

    with subtest("a backup is a file for its user only, and older ones go"):
        backups = "/var/lib/distributed-ftp-backup"
        for day in ("01", "02", "03"):
            server.succeed(f"install -o ftp-backup -m 600 /dev/null {backups}/accounts-2020-01-{day}T000000Z.json")
        server.succeed("systemctl start ftp-backup.service")
        made = server.succeed(f"ls {backups}").split()
        assert len(made) == 2 and made[0] == "accounts-2020-01-03T000000Z.json", made
        newest = f"{backups}/{made[1]}"
        assert server.succeed(f"stat -c %U:%a {backups} {newest}").split() == ["ftp-backup:700", "ftp-backup:600"]
        assert server.succeed("systemctl is-active ftp-backup.timer").strip() == "active"

    with subtest("a failed backup is a failed unit, and leaves the earlier files as they were"):
        server.succeed("systemctl stop authd.service")
        server.fail("systemctl start ftp-backup.service", timeout=300)
        assert server.execute("systemctl is-failed ftp-backup.service")[0] == 0
        assert server.succeed(f"ls {backups}").split() == made
        server.succeed("systemctl start authd.service")

    with subtest("a backup brings the accounts back into an empty Redis"):
        password = server.succeed("cat /etc/ftp-secrets/redis-password").strip()
        server.succeed(f"REDISCLI_AUTH='{password}' redis-cli flushall")
        assert "carl" not in client.succeed(f"{ftpctl} users list")
        admin = "/var/lib/distributed-ftp-secrets/adminToken"
        server.succeed(f"ftpctl --url {page} --token-file {admin} restore {newest}")
        assert "carl" in client.succeed(f"{ftpctl} users list")
        client.wait_until_succeeds(
            f"{CURL} 'ftp://carl:a%20long%20enough%20password@server/file' | cmp - /tmp/file", timeout=60
        )
        pids["authd"] = server.get_unit_property("authd.service", "MainPID")

    with subtest("the log level changes without a restart, and settings that need one are named"):
        server.succeed(
            "sed 's/^max_sessions = .*/max_sessions = 499/' /etc/distributed-ftp/ftpd.toml > /run/ftpd.toml;"
            " echo 'log_level = \"debug\"' >> /run/ftpd.toml; ln -sfn /run/ftpd.toml /etc/distributed-ftp/ftpd.toml"
        )
        server.succeed("systemctl reload ftpd.service")
        server.wait_until_succeeds("journalctl -u ftpd.service | grep 'need a restart settings=max_sessions'", timeout=30)
        assert download("file") == sent
        server.wait_until_succeeds("journalctl -u ftpd.service | grep 'verb=RETR code='", timeout=30)
        for unit, pid in pids.items():
            assert server.get_unit_property(f"{unit}.service", "MainPID") == pid, unit
  '';
}
