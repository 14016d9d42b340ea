# The role of monitoring: Prometheus that knows the cluster, alert rules, and a Grafana dashboard.
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
    builtins.toJSON (import ./monitoring/dashboard.nix { inherit lib; })
  );
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf cluster.isMonitoring {
    assertions = [
      {
        assertion = monitoring.address != null;
        message = "services.distributedFtp.cluster.monitoring.address is not set: the nodes serve their metrics to no one else than that address.";
      }
    ];

    services.prometheus = {
      enable = true;
      # Other targets, such as one more node, are a reload.
      enableReload = lib.mkDefault true;
      scrapeConfigs = [
        {
          job_name = "ftpd";
          static_configs = targets cfg.cluster.nodes (_: monitoring.metricsPort);
        }
        {
          job_name = "authd";
          static_configs = targets auth (member: member.port);
        }
      ];
      # JSON is YAML.
      rules = [ (builtins.toJSON (import ./monitoring/rules.nix)) ];
    };

    systemd.services.grafana = lib.mkIf monitoring.grafana {
      serviceConfig.LoadCredential = "secret-key:${cluster.secretFile "grafanaSecretKey"}";
    };
    services.grafana = lib.mkIf monitoring.grafana {
      enable = true;
      # NixOS has no default, and Grafana's own is the same everywhere. A Grafana that exists already
      # keeps the key that its database was encrypted with.
      settings.security.secret_key = lib.mkDefault "$__file{/run/credentials/grafana.service/secret-key}";
      provision = {
        enable = true;
        datasources.settings.datasources = [
          {
            name = "Distributed FTP";
            type = "prometheus";
            # The dashboard's panels name it.
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
