# The Grafana dashboard of the cluster, as an attribute set that becomes JSON.
{ lib }:
let
  panels = [
    {
      title = "Nodes that answer";
      expr = ''sum(up{job="ftpd"})'';
      legend = "nodes";
    }
    {
      title = "Sessions";
      expr = "ftp_sessions";
      legend = "{{instance}}";
    }
    {
      title = "Control connections";
      expr = "ftp_connections";
      legend = "{{instance}}";
    }
    {
      title = "Transfers in progress";
      expr = "ftp_transfers";
      legend = "{{instance}}";
    }
    {
      title = "Data";
      expr = "sum by (direction) (rate(ftp_transfer_bytes_total[1m]))";
      legend = "{{direction}}";
      unit = "Bps";
    }
    {
      title = "Transfers by result";
      expr = "sum by (direction, result) (rate(ftp_transfers_total[5m]))";
      legend = "{{direction}} {{result}}";
      unit = "ops";
    }
    {
      title = "Failed operations by reason";
      expr = "sum by (reason) (rate(ftp_operations_failed_total[5m]))";
      legend = "{{reason}}";
      unit = "ops";
    }
    {
      title = "Oldest file operation";
      expr = "ftp_oldest_file_operation_seconds";
      legend = "{{instance}}";
      unit = "s";
    }
    {
      title = "Slots for file work in use";
      expr = "ftp_slots_used";
      legend = "{{instance}} {{kind}}";
    }
    {
      title = "Logins by result";
      expr = "sum by (result) (rate(ftp_logins_total[5m]))";
      legend = "{{result}}";
      unit = "ops";
    }
    {
      title = "authd: response time, 95th percentile";
      # The daemons export histograms with buckets, not summaries.
      expr = "histogram_quantile(0.95, sum by (le) (rate(ftp_authd_seconds_bucket[5m])))";
      legend = "seconds";
      unit = "s";
    }
    {
      title = "authd: delayed logins";
      expr = "sum by (by) (rate(authd_throttled_total[5m]))";
      legend = "by {{by}}";
      unit = "ops";
    }
    {
      title = "Passive ports reserved";
      expr = "ftp_passive_ports_reserved";
      legend = "{{instance}}";
    }
    {
      title = "Data connections relayed now";
      expr = "ftp_relayed";
      legend = "{{instance}}";
    }
    {
      title = "Data relayed";
      expr = "sum by (instance, direction) (rate(ftp_relay_bytes_total[1m]))";
      legend = "{{instance}} {{direction}}";
      unit = "Bps";
    }
    {
      title = "Blocks of passive ports";
      expr = "ftp_blocks";
      legend = "{{instance}} {{state}}";
    }
    {
      title = "Limits reached";
      expr = "sum by (instance, limit) (rate(ftp_limit_reached_total[5m]))";
      legend = "{{instance}} {{limit}}";
      unit = "ops";
    }
    {
      title = "Connections refused";
      expr = "sum by (reason) (rate(ftp_connections_refused_total[5m]))";
      legend = "{{reason}}";
      unit = "ops";
    }
  ];

  datasource = {
    type = "prometheus";
    uid = "distributed-ftp";
  };
  panel = position: panel: {
    id = position + 1;
    type = "timeseries";
    inherit (panel) title;
    inherit datasource;
    # Two panels a row; a row has 24 columns.
    gridPos = {
      x = 12 * lib.mod position 2;
      y = 8 * (position / 2);
      w = 12;
      h = 8;
    };
    fieldConfig.defaults = {
      unit = panel.unit or "short";
      min = 0;
    };
    targets = [
      {
        refId = "A";
        inherit datasource;
        inherit (panel) expr;
        legendFormat = panel.legend;
      }
    ];
  };
in
{
  uid = "distributed-ftp";
  title = "Distributed FTP";
  tags = [ "ftp" ];
  timezone = "browser";
  refresh = "30s";
  schemaVersion = 39;
  time = {
    from = "now-6h";
    to = "now";
  };
  panels = lib.imap0 panel panels;
}
