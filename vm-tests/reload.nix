# Changes that reload without a restart: users, certificates, the NFS export, the balancer's configuration.
# And a stop of the balancer.
let
  # The hosts after the change; these machines are only built, never started.
  after =
    hostName:
    { nodes, ... }:
    {
      services.distributedFtp = {
        inherit hostName;
        cluster.nodes.ftp3.address = nodes.client.networking.primaryIPAddress;
        users.ann.hashedPasswordFile = "/etc/ftp-secrets/user-demo";
      };
    };
  openssl =
    { pkgs, ... }:
    {
      environment.systemPackages = [ pkgs.openssl ];
    };
in
{
  cluster = {
    imports = [ ./lib/certificate.nix ];
  };
  machines = {
    ftp1 = openssl;
    # Another nginx on the same host serves web pages.
    lb.services.nginx.enable = true;
    backend-after = after "backend";
    lb-after = after "lb";
  };

  script =
    { nodes }:
    let
      file = machine: name: nodes.${machine}.environment.etc.${name}.source;
    in
    ''
      def pid(node: Any, unit: str) -> str:
          return str(node.get_unit_property(f"{unit}.service", "MainPID"))


      def replace(node: Any, path: str, source: str) -> None:
          """Installs another file of the store, as a switch of the configuration does."""
          node.succeed(f"ln -sfn {source} {path}")


      wait_for_cluster()
      lb.wait_for_unit("nginx.service", timeout=300)
      sent = make_file("/tmp/file", 4000)
      upload("/tmp/file", "file")
      before = {(node.name, unit): pid(node, unit)
                for node, unit in ((backend, "authd"), (ftp1, "ftpd"), (lb, "ftp-balancer"), (lb, "nginx"))}
      start_session("held", "hold")

      with subtest("nginx and ftp-relay are sandboxed as the daemons are"):
          for unit in ("ftp-balancer", "ftp-relay"):
              report = lb.succeed(f"systemd-analyze security --no-pager {unit}.service")
              log.info(report)
              [line] = [line for line in report.splitlines() if "Overall exposure level" in line]
              assert float(line.split(":")[1].split()[0]) <= 2.0, line
          limits = lb.succeed("cat /proc/$(pgrep -u ftp-balancer -f 'worker process' | head -n 1)/limits")
          [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
          assert line.split()[3] == "1048576", line

      with subtest("a reload of authd adds a user"):
          ann = "ftp://ann:secret@lb/"
          client.fail(f"{CURL} {ann}")
          replace(backend, "/etc/distributed-ftp/users.json", "${file "backend-after" "distributed-ftp/users.json"}")
          replace(backend, "/etc/distributed-ftp/authd.files", "${file "backend-after" "distributed-ftp/authd.files"}")
          backend.succeed("systemctl reload authd.service")
          client.wait_until_succeeds(f"{CURL} {ann}", timeout=60)
          access = backend.succeed("cd /run/distributed-ftp/authd; stat -c %U:%G:%a . *").split()
          assert access == ["root:authd-files:750"] + ["root:authd-files:440"] * 3, access

      with subtest("a reload with a missing file fails and keeps the users"):
          backend.succeed("echo 'x /nowhere' > /run/list; ln -sfn /run/list /etc/distributed-ftp/authd.files")
          backend.fail("systemctl reload authd.service")
          client.succeed(f"{CURL} {ann}")
          backend.succeed("journalctl -u authd.service | grep /nowhere")

      with subtest("a reload of ftpd loads another certificate"):
          def certificate() -> str:
              return ftp1.succeed(
                  "openssl s_client -connect ${nodes.ftp1.networking.primaryIPAddress}:21 -starttls ftp < /dev/null"
                  " | openssl x509 -noout -subject"
              )

          assert "lb" in certificate()
          ftp1.succeed(
              "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=renewed -keyout /run/key -out /run/cert;"
              " ln -sfn /run/cert /etc/ftp-tls/cert.pem; ln -sfn /run/key /etc/ftp-tls/key.pem"
          )
          assert "lb" in certificate()
          ftp1.succeed("systemctl reload ftpd.service")
          retry(lambda _: "renewed" in certificate(), timeout_seconds=60)

      with subtest("the NFS server exports to a new node without a restart"):
          since = backend.get_unit_property("nfs-server.service", "ActiveEnterTimestampMonotonic")
          exports = "exports.d/distributed-ftp.exports"
          backend.fail("grep ${nodes.client.networking.primaryIPAddress} /var/lib/nfs/etab")
          replace(backend, f"/etc/{exports}", "${file "backend-after" "exports.d/distributed-ftp.exports"}")
          backend.succeed("systemctl reload distributed-ftp-exports.service")
          backend.succeed("grep ${nodes.client.networking.primaryIPAddress} /var/lib/nfs/etab")
          assert since == backend.get_unit_property("nfs-server.service", "ActiveEnterTimestampMonotonic")
          assert download("file") == sent

      with subtest("a wrong configuration of the balancer is refused, a right one is a reload"):
          replace(lb, "/etc/distributed-ftp/balancer.conf", "/etc/hosts")
          lb.fail("systemctl reload ftp-balancer.service")
          replace(lb, "/etc/distributed-ftp/balancer.conf", "${file "lb-after" "distributed-ftp/balancer.conf"}")
          lb.succeed("systemctl reload ftp-balancer.service")
          lb.wait_until_succeeds("journalctl -u ftp-balancer.service | grep reconfiguring", timeout=60)
          assert pid(lb, "ftp-balancer") == before["lb", "ftp-balancer"]

      with subtest("another nginx program takes over from the first one"):
          old = lb.succeed("cat /run/ftp-balancer/nginx.pid").strip()
          # The same program at another path.
          lb.succeed("cp $(readlink -f /etc/distributed-ftp/nginx) /var/other-nginx")
          replace(lb, "/etc/distributed-ftp/nginx", "/var/other-nginx")
          lb.succeed("systemctl reload ftp-balancer.service")
          new = lb.succeed("cat /run/ftp-balancer/nginx.pid").strip()
          assert new != old and "other-nginx" in lb.succeed(f"readlink /proc/{new}/exe"), (old, new)
          assert download("file") == sent
          # The second nginx can be reloaded while the first one waits for its last session.
          lb.succeed("systemctl reload ftp-balancer.service; kill -0 " + old)
          assert lb.succeed("cat /run/ftp-balancer/nginx.pid").strip() == new

      with subtest("a session from before the changes works, and no process was restarted"):
          client.succeed("touch /tmp/held.go")
          result = answer_of("held")
          assert result["same"] and result["listed"], result
          # The first nginx has no session left.
          retry(lambda _: pid(lb, "ftp-balancer") == new, timeout_seconds=60)
          lb.require_unit_state("ftp-balancer.service")
          for node, unit in ((backend, "authd"), (ftp1, "ftpd"), (lb, "nginx")):
              assert pid(node, unit) == before[node.name, unit], (node.name, unit)

      with subtest("the balancer stops after the transfers have completed"):
          in_background("slow", f"{CURL} --limit-rate 200K -o /tmp/slow {URL}/file")
          node_with_transfer()
          lb.succeed("systemctl stop --no-block ftp-balancer.service")
          client.wait_until_fails("nc -z lb 21", timeout=60)
          assert end_of("slow") == 0
          assert hash_of("/tmp/slow") == sent
          lb.succeed("systemctl start ftp-balancer.service", timeout=180)
          wait_for_login()
    '';
}
