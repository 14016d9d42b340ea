# The floating address of several balancers: keepalived (VRRP) moves it to a balancer that works.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  description = cfg.cluster;
  floating = description.floatingAddress;
  own = description.balancers.${cluster.hostName};
  inherit (description) monitoring;

  # Like the derived setting `admin_listen` of ftp-relay.
  relayAdmin =
    if cluster.monitoringAddresses == [ ] then "127.0.0.1" else cluster.bracketed own.address;

  # A connection to the control port would prove no more than the listening socket, because the kernel accepts
  # it. It would also be a session in the logs of nginx and a node, every two seconds.
  health = pkgs.writeShellScript "ftp-balancer-health" (
    ''
      set -eu
    ''
    + lib.optionalString cluster.usesRelay ''
      ${lib.getExe pkgs.curl} --silent --fail --max-time 3 --output /dev/null \
        http://${relayAdmin}:${toString monitoring.relayMetricsPort}/readyz
    ''
    # A node on the same host listens on the same ports, on another address.
    + lib.concatMapStrings (port: ''
      test -n "$(${lib.getExe' pkgs.iproute2 "ss"} -Hltn 'sport = :${toString port}${onlyOwn}')"
    '') cluster.controlPorts
  );

  onlyOwn = lib.optionalString (
    description.nodes ? ${cluster.hostName}
  ) " and src ${cluster.bracketed (lib.head own.listenAddresses)}";

  interval = 2;
  # A restart of ftp-relay must not move the address: that would end all sessions, where the restart ends only
  # data connections.
  patience = cluster.seconds cfg.relay.settings.drain_timeout + 6;

  prefixed = address: if cluster.isV6 address then "${address}/128" else "${address}/32";
in
{
  imports = [ ./common.nix ];

  config =
    lib.mkIf
      (
        cluster.isBalancer && floating.address != null && floating.interface != null && own.address != null
      )
      {
        # A listener may name an address that another balancer has at the moment.
        boot.kernel.sysctl = {
          "net.ipv4.ip_nonlocal_bind" = lib.mkDefault true;
          "net.ipv6.ip_nonlocal_bind" = lib.mkDefault true;
        };

        users.users.ftp-balancer-health = {
          isSystemUser = true;
          description = "Health check of Distributed FTP's balancer";
          group = "ftp-balancer-health";
        };
        users.groups.ftp-balancer-health = { };

        services.keepalived = {
          enable = true;
          # Otherwise keepalived logs a warning at each start. Scripts that run as root must then lie where
          # only root writes; the health check does not run as root.
          extraGlobalDefs = lib.mkDefault "enable_script_security";
          vrrpScripts.ftp-balancer = {
            script = toString health;
            inherit interval;
            timeout = 5;
            fall = (patience + interval - 1) / interval;
            rise = 2;
            # Less than any other balancer that works. Without a weight a failure would give up the address
            # even if no balancer works, as when no node is ready, and end sessions that could go on.
            weight = -50;
            user = "ftp-balancer-health";
            group = "ftp-balancer-health";
            # A balancer that boots takes the address only when it works, or if no other balancer answers.
            extraConfig = "init_fail";
          };
          vrrpInstances.ftp = {
            inherit (floating) interface;
            state = "BACKUP";
            virtualRouterId = floating.routerId;
            # The same on all: a balancer that comes back does not take the address back, which would end all
            # sessions once more. (`nopreempt` would also leave the address with a balancer that failed.)
            priority = 100;
            unicastSrcIp = own.address;
            unicastPeers = lib.remove own.address cluster.ownBalancerAddresses;
            trackScripts = [ "ftp-balancer" ];
            virtualIps = [
              { addr = prefixed floating.address; }
            ]
            ++ lib.optional cluster.movesGateway {
              addr = prefixed description.dataGateway;
              dev = floating.gatewayInterface;
            };
          };
        };
      };
}
