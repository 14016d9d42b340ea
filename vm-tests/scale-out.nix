# A third node joins under load: the hosts behind the nodes know it already, no node restarts, and the
# balancer is reloaded with the configuration that has one node more.
let
  third =
    { nodes, ... }:
    {
      services.distributedFtp.cluster.nodes.ftp3 = {
        address = nodes.ftp3.networking.primaryIPAddress;
        passivePorts = {
          from = 50020;
          to = 50029;
        };
      };
    };
in
{
  # With slices of their own, which no new node moves.
  cluster.services.distributedFtp.cluster.nodes = {
    ftp1.passivePorts = {
      from = 50000;
      to = 50009;
    };
    ftp2.passivePorts = {
      from = 50010;
      to = 50019;
    };
  };

  machines = {
    backend = third;
    ftp3 = third;
    # What the balancer's configuration will be; this machine never starts.
    after = {
      imports = [ third ];
      services.distributedFtp.hostName = "lb";
    };
  };

  script =
    { nodes }:
    ''
      import re

      wait_for_cluster()
      pids = {node.name: node.get_unit_property("ftpd.service", "MainPID") for node in ftp_nodes}
      in_background("load", ftptest("load", "/tmp/load", 4))
      retry(lambda _: sum(metric(node, "ftp_transfers_total") for node in ftp_nodes) >= 6, 180)

      with subtest("no connection of the host's own takes a port of the range"):
          for host in (lb, ftp1):
              reserved = host.succeed("sysctl -n net.ipv4.ip_local_reserved_ports").strip()
              assert reserved == "50000-50029", reserved

      with subtest("the new node joins"):
          ftp3.start()
          ftp3.wait_for_unit("ftpd.service", timeout=300)
          retry(lambda _: live_nodes() == {"ftp1", "ftp2", "ftp3"}, timeout_seconds=60)

      with subtest("the balancer is reloaded with it"):
          pid = lb.get_unit_property("nginx.service", "MainPID")
          path = lb.succeed(f"tr '\\0' ' ' < /proc/{pid}/cmdline").split(" -c ")[1].split()[0].strip("'")
          stream = re.compile(r"^stream \{.*^\}", re.M | re.S)
          after = lb.succeed("cat ${nodes.after.environment.etc."nginx/nginx.conf".source}")
          # From the old file, only the proxy's part changes.
          [block] = stream.findall(after)
          new, count = stream.subn(lambda _: block, lb.succeed(f"cat {path}"))
          assert count == 1 and "ftp3" in new
          lb.succeed(f"cat > /run/nginx.conf.new << 'END'\n{new}\nEND")
          lb.succeed(f"mount --bind /run/nginx.conf.new $(realpath {path})")
          lb.succeed(f"kill -HUP {pid}")
          slices["ftp3"] = (50020, 50029)
          ftp_nodes.append(ftp3)
          retry(lambda _: metric(ftp3, "ftp_connections_total") >= 1 or not answer("spread", 3), 60)

      with subtest("clients that worked all the time lost nothing, and use the new node"):
          retry(lambda _: "ftp3" in {node_of(p).name for p in answer("spread", 3)}, timeout_seconds=60)
          client.succeed("touch /tmp/load.stop")
          result = answer_of("load")
          log.info(f"load: {result}")
          assert result["losses"] == [] and result["reconnects"] == 0, result
          assert result["transfers"] >= 12, result

      with subtest("the other nodes were left alone"):
          for node in (ftp1, ftp2):
              assert node.get_unit_property("ftpd.service", "MainPID") == pids[node.name]
    '';
}
