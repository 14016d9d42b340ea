# The monitoring role: Prometheus with the targets of the cluster, alert rules, and a Grafana dashboard.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cfg.cluster) monitoring auth;

  targets = members: port: [
    {
      targets = lib.mapAttrsToList (
        _: member: "${cluster.bracketed member.address}:${toString (port member)}"
      ) (lib.filterAttrs (_: member: member.address != null) members);
    }
  ];
  dashboards = pkgs.writeTextDir "distributed-ftp.json" (
    builtins.readFile ../deploy/monitoring/dashboard.json
  );
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf cluster.isMonitoring {
    assertions = [
      {
        assertion = monitoring.address != null;
        message =
          "services.distributedFtp.cluster.monitoring.address is not set:"
          + " the nodes let only that address read their metrics.";
      }
    ];

    services.prometheus = {
      enable = true;
      # A change of the targets, such as a new node, reloads Prometheus.
      enableReload = lib.mkDefault true;
      scrapeConfigs = [
        {
          job_name = "ftpd";
          static_configs = targets cfg.cluster.nodes (_: monitoring.metricsPort);
        }
        {
          job_name = "ftp-relay";
          static_configs = targets (lib.optionalAttrs cluster.usesRelay cluster.ownBalancers) (
            _: monitoring.relayMetricsPort
          );
        }
        {
          job_name = "authd";
          static_configs = targets auth (member: member.port);
        }
      ];
      ruleFiles = [ ../deploy/monitoring/rules.yaml ];
    };

    systemd.services.grafana = lib.mkIf monitoring.grafana {
      serviceConfig.LoadCredential = "secret-key:${cluster.secretFile "grafanaSecretKey"}";
    };
    services.grafana = lib.mkIf monitoring.grafana {
      enable = true;
      # NixOS sets no key, and Grafana's built-in key is public. An existing Grafana keeps the key that its
      # database was encrypted with.
      settings.security.secret_key = lib.mkDefault "$__file{/run/credentials/grafana.service/secret-key}";
      provision = {
        enable = true;
        datasources.settings.datasources = [
          {
            name = "Distributed FTP";
            type = "prometheus";
            # The panels of the dashboard refer to this id.
            uid = "distributed-ftp";
            url = "http://127.0.0.1:${toString config.services.prometheus.port}";
          }
        ];
        dashboards.settings.providers = [
          {
            name = "Distributed FTP";
            options.path = dashboards;
          }
        ];
      };
    };
  };
}
