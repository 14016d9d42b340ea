# Alert rules: the conditions that an operator must know, and their effect on clients.
let
  # An alert that fires when `expr` has held for `minutes`. `sentences` make its summary.
  alert = name: expr: minutes: severity: sentences: {
    alert = name;
    inherit expr;
    for = "${toString minutes}m";
    labels = { inherit severity; };
    annotations.summary = builtins.concatStringsSep " " sentences;
  };
in
{
  groups = [
    {
      name = "distributed-ftp";
      rules = [
        (alert "FtpNodeDown" ''up{job="ftpd"} == 0'' 2 "warning" [
          "The FTP node {{ $labels.instance }} does not answer."
          "The other nodes serve its clients."
        ])
        (alert "FtpNoNode" ''sum(up{job="ftpd"}) == 0'' 1 "critical" [
          "No FTP node answers: clients cannot connect."
        ])
        (alert "AuthdDown" ''sum(up{job="authd"}) == 0'' 1 "critical" [
          "No authd answers: clients cannot log in."
        ])
        (alert "FtpDependencyFails" "ftp_dependency_up == 0" 2 "warning" [
          "{{ $labels.instance }}: the dependency {{ $labels.dependency }} fails."
          "The node's /readyz gives the reason and the setting to check."
        ])
        (alert "AuthdDependencyFails" "authd_dependency_up == 0" 2 "warning" [
          "{{ $labels.instance }}: the dependency {{ $labels.dependency }} fails."
          "Users that were created through the API cannot log in."
        ])
        (alert "AuthdUsersFileBroken" "authd_users_file_current == 0" 5 "warning" [
          "{{ $labels.instance }} cannot use the current users file."
          "It goes on with the users of the last good one. Its log gives the error."
        ])
        (alert "FtpSessionsNearLimit"
          ''ftp_connections / on (instance) ftp_limit{limit="max_sessions"} > 0.9''
          5
          "warning"
          [ "{{ $labels.instance }} has more than 90 % of the connections that max_sessions allows." ]
        )
        (alert "FtpRelayDown" ''up{job="ftp-relay"} == 0'' 1 "critical" [
          "ftp-relay on {{ $labels.instance }} does not answer:"
          "data connections through this balancer fail, unless its kernel forwards them."
        ])
        # The balancer knows the owners, so nodes should have next to nothing to pass on.
        (alert "FtpNodesRelay"
          (
            "sum(rate(ftp_relayed_total{job=\"ftpd\"}[5m])) > 0.1 * sum(rate(ftp_transfers_total[5m]))"
            + " and on () sum(up{job=\"ftp-relay\"}) > 0"
          )
          15
          "warning"
          [
            "More than a tenth of the data connections arrive at another node than the owner of their port."
            "Look at the log of ftp-relay: its map of the owners is old, or clients reach the nodes another way."
          ]
        )
        (alert "FtpRelayRefuses" "sum by (instance, reason) (rate(ftp_relay_refused_total[5m])) > 0.1" 5
          "warning"
          [
            "{{ $labels.instance }} refuses to relay data connections ({{ $labels.reason }})."
            "docs/troubleshooting.md lists the reasons."
          ]
        )
        (alert "FtpNodeAvoided" "increase(ftp_relay_nodes_avoided_total[10m]) > 0" 10 "warning" [
          "Node {{ $labels.node }} serves no new clients ({{ $labels.reason }}), says {{ $labels.instance }}."
          "Its kernel may still accept connections: look at the node itself."
        ])
        (alert "FtpKernelMapFails" ''rate(ftp_relay_nft_writes_total{result="failed"}[5m]) > 0'' 5 "warning"
          [
            "ftp-relay on {{ $labels.instance }} cannot tell the kernel the owners of the passive ports."
            "The kernel goes on with the old ones. The log of ftp-relay has the reason."
          ]
        )
        (alert "FtpPassivePortsExhausted" "rate(ftp_passive_ports_exhausted_total[5m]) > 0" 5 "warning" [
          "Clients of {{ $labels.instance }} get 425: a client address uses all passive ports of the node."
          "Widen the range (passive_port_min, passive_port_max)."
        ])
        (alert "FtpTransfersWait" ''rate(ftp_limit_reached_total{limit="max_transfers"}[5m]) > 0'' 5
          "warning"
          [
            "Transfers on {{ $labels.instance }} wait for a slot: max_transfers is reached."
            "Raise it, or find out why the storage is slow."
          ]
        )
        (alert "FtpFileOperationHangs" "ftp_oldest_file_operation_seconds > 30" 1 "warning" [
          "A file operation on {{ $labels.instance }} hangs: a part of its storage does not answer."
          "The log gives the user and the path."
        ])
        (alert "FtpStorageFails"
          ''sum by (instance) (rate(ftp_operations_failed_total{reason=~"storage_.*"}[5m])) > 0''
          5
          "warning"
          [
            "The storage of {{ $labels.instance }} refuses operations or hangs."
            "The log gives the cause: reason, errno, stored_at."
          ]
        )
        (alert "FtpAuthdSlow" (
          "sum by (instance) (rate(ftp_authd_seconds_sum[5m]))"
          + " / sum by (instance) (rate(ftp_authd_seconds_count[5m])) > 2"
        ) 5 "warning" [ "Logins through {{ $labels.instance }} wait for authd for more than two seconds." ])
        (alert "FtpSessionsUnchecked" ''increase(ftp_reauthorizations_total{result="failed"}[10m]) > 5'' 5
          "warning"
          [
            "{{ $labels.instance }} cannot ask authd which sessions may stay."
            "Sessions of removed or disabled users may go on."
          ]
        )
        (alert "FtpCertificateUnusable" ''increase(ftp_tls_reloads_total{result="failed"}[1h]) > 0'' 1
          "warning"
          [ "{{ $labels.instance }} cannot use its new certificate, and goes on with the old one." ]
        )
        (alert "FtpDrainsForLong" "ftp_draining == 1" 30 "warning" [
          "{{ $labels.instance }} has been draining for half an hour."
        ])
      ];
    }
  ];
}
