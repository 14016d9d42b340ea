# Alert rules: what an operator must know, and what it means for clients.
let
  alert = name: expr: minutes: severity: summary: {
    alert = name;
    inherit expr;
    for = "${toString minutes}m";
    labels = { inherit severity; };
    annotations = { inherit summary; };
  };
in
{
  groups = [
    {
      name = "distributed-ftp";
      rules = [
        (alert "FtpNodeDown" ''up{job="ftpd"} == 0'' 2 "warning"
          "The FTP node {{ $labels.instance }} does not answer; the others serve its clients."
        )
        (alert "FtpNoNode" ''sum(up{job="ftpd"}) == 0'' 1 "critical"
          "No FTP node answers: nobody is served."
        )
        (alert "AuthdDown" ''sum(up{job="authd"}) == 0'' 1 "critical"
          "No authd answers: nobody can log in."
        )
        (alert "FtpDependencyFails" "ftp_dependency_up == 0" 2 "warning"
          "{{ $labels.instance }}: its dependency {{ $labels.dependency }} fails; its /readyz says why, and which setting to look at."
        )
        (alert "AuthdDependencyFails" "authd_dependency_up == 0" 2 "warning"
          "{{ $labels.instance }}: its dependency {{ $labels.dependency }} fails; users made through the API cannot log in."
        )
        (alert "AuthdUsersFileBroken" "authd_users_file_current == 0" 5 "warning"
          "{{ $labels.instance }} cannot use its users file as it is now, and goes on with the one before."
        )
        (alert "FtpSessionsNearLimit"
          ''ftp_connections / on (instance) ftp_limit{limit="max_sessions"} > 0.9''
          5
          "warning"
          "{{ $labels.instance }} holds nine tenths of the sessions that max_sessions allows."
        )
        (alert "FtpPassivePortsExhausted" "rate(ftp_passive_ports_exhausted_total[5m]) > 0" 5 "warning"
          "Clients of {{ $labels.instance }} get 425: one address has taken all its passive ports. Widen the range."
        )
        (alert "FtpTransfersWait" ''rate(ftp_limit_reached_total{limit="max_transfers"}[5m]) > 0'' 5
          "warning"
          "Transfers on {{ $labels.instance }} wait for their turn: max_transfers is reached, or the storage is slow."
        )
        (alert "FtpFileOperationHangs" "ftp_oldest_file_operation_seconds > 30" 1 "warning"
          "A file operation on {{ $labels.instance }} does not end: a part of its storage hangs. The log names user and path."
        )
        (alert "FtpStorageFails"
          ''sum by (instance) (rate(ftp_operations_failed_total{reason=~"storage_.*"}[5m])) > 0''
          5
          "warning"
          "The storage of {{ $labels.instance }} refuses operations or hangs. The log says why: reason, errno, stored_at."
        )
        (alert "FtpAuthdSlow"
          "sum by (instance) (rate(ftp_authd_seconds_sum[5m])) / sum by (instance) (rate(ftp_authd_seconds_count[5m])) > 2"
          5
          "warning"
          "Logins through {{ $labels.instance }} wait for authd for more than two seconds."
        )
        (alert "FtpCertificateUnusable" ''increase(ftp_tls_reloads_total{result="failed"}[1h]) > 0'' 1
          "warning"
          "{{ $labels.instance }} cannot use its new certificate, and goes on with the one before."
        )
        (alert "FtpDrainsForLong" "ftp_draining == 1" 30 "warning"
          "{{ $labels.instance }} has been draining for half an hour."
        )
      ];
    }
  ];
}
