# The role of authd: it verifies passwords and keeps users.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (pkgs.stdenv) buildPlatform hostPlatform;
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  own = cfg.cluster.auth.${cluster.hostName};

  derived = {
    listen = "${cluster.bracketed own.address}:${toString own.port}";
    administrators_file = if cfg.administrators == { } then null else "/etc/${administratorsEtc}";
    console = cfg.console.enable;
    console_session = cfg.console.session;
  }
  // cluster.redisSettings
  // cluster.auditSettings logsDirectory;
  logsDirectory = "/var/log/authd";
  administratorsEtc = "distributed-ftp/administrators.toml";
  administratorsFile = (pkgs.formats.toml { }).generate "administrators.toml" (
    lib.mapAttrs (_: administrator: {
      inherit (administrator) role;
      token_sha256 = administrator.tokenSha256;
    }) cfg.administrators
  );
  settings = lib.filterAttrs (_: value: value != null) (derived // cfg.authd.settings);

  # A user name may contain characters that a file name must not.
  hashFileOf = name: "user-${lib.substring 0 16 (builtins.hashString "sha256" name)}";
  users = lib.filterAttrs (_: user: user.hashedPasswordFile != null) cfg.users;

  # The fields that are set, with the names that authd uses.
  set = lib.filterAttrs (_: value: value != null && value != [ ] && value != { });
  policy =
    from:
    set {
      inherit (from) folders uploads;
      permissions = set from.permissions;
      directories = map (rule: rule // { permissions = set rule.permissions; }) from.directories;
      denied_names = from.deniedNames;
      limits = set {
        inherit (from.limits) sessions transfers;
        sessions_per_address = from.limits.sessionsPerAddress;
      };
      quota = set from.quota;
      bandwidth = set {
        inherit (from.bandwidth) upload download;
        session_upload = from.bandwidth.sessionUpload;
        session_download = from.bandwidth.sessionDownload;
      };
      tls = set {
        inherit (from.tls) control data;
        close_notify = from.tls.closeNotify;
      };
      # An empty list counts as set: it removes a restriction of a group.
      access = lib.filterAttrs (_: value: value != null) {
        allow_from = from.access.allowFrom;
        deny_from = from.access.denyFrom;
        inherit (from.access) hours;
      };
    };
  declared =
    password: name: user:
    policy user
    // password name
    // {
      inherit (user)
        enabled
        home
        admin
        certificates
        groups
        ;
    };
  usersFile =
    name: password:
    (pkgs.formats.json { }).generate name {
      groups = lib.mapAttrs (_: policy) cfg.groups;
      users = lib.mapAttrs (declared password) users;
    };
  configFrom =
    name: settings: users_file:
    (pkgs.formats.toml { }).generate name (settings // { inherit users_file; });
  configWith = name: configFrom name settings;

  # The users file and the password hashes that it names. The hashes are written first.
  userFiles = import ./run-files.nix { inherit lib pkgs; } {
    name = "authd";
    group = "authd-files";
    files =
      lib.mapAttrsToList (name: user: {
        name = hashFileOf name;
        path = user.hashedPasswordFile;
      }) users
      ++ [
        {
          name = "users.json";
          path = "/etc/distributed-ftp/users.json";
        }
      ];
  };
  etc = {
    "distributed-ftp/authd.toml".source = configWith "authd.toml" "${userFiles.directory}/users.json";
    "distributed-ftp/users.json".source = usersFile "users.json" (name: {
      password_hash_file = hashFileOf name;
    });
    ${userFiles.etc}.text = userFiles.list;
  }
  // lib.optionalAttrs (cfg.administrators != { }) {
    ${administratorsEtc}.source = administratorsFile;
  };
  sourceOf = name: config.environment.etc.${name}.source;

  secrets = lib.filterAttrs (_: file: file != null) {
    node-token = cluster.secretFile "nodeToken";
    admin-token = cluster.secretFile "adminToken";
    redis-password = cluster.secretFile "redisPassword";
  };
  secretFlags = path: lib.mapAttrsToList (name: _: "--${name}-file ${path name}") secrets;

  # The build runs the daemon's own check of settings and users, with placeholder secrets.
  checkedConfig =
    configFrom "authd-checked.toml"
      (
        settings
        // lib.optionalAttrs (cfg.administrators != { }) { administrators_file = administratorsFile; }
      )
      (
        usersFile "users-checked.json" (_: {
          password_hash = "$argon2id$v=19$m=64,t=1,p=1$bm90IGEgc2FsdA$W/yWtQMsvmDUfhlr0m6Bb8wXAqHFR0R7R3PpHFI8uEs";
        })
      );
  checkedSettings = pkgs.runCommand "authd-settings" { } ''
    for secret in ${toString (lib.attrNames secrets)}; do echo "not the $secret" > "$secret"; done
    ${lib.getExe' cfg.package "authd"} --check --config ${checkedConfig} ${
      toString (secretFlags (name: name))
    }
    touch $out
  '';
in
{
  imports = [ ./common.nix ];

  config = lib.mkIf (cluster.isAuth && own.address != null) {
    environment.etc = etc;
    users.groups.authd-files = { };
    system.checks = lib.optional (buildPlatform.canExecute hostPlatform) checkedSettings;

    systemd.services.authd = {
      description = "Users and sessions of Distributed FTP";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "redis-ftp.service"
        "distributed-ftp-secrets.service"
      ];
      # Keeps the interruption short.
      stopIfChanged = false;
      # SIGHUP makes authd apply the settings of the log, and read users, groups and administrators again.
      restartTriggers = [
        (configFrom "authd-restart.toml" (cluster.needingRestart settings)
          "${userFiles.directory}/users.json"
        )
      ];
      reloadTriggers = [
        (sourceOf "distributed-ftp/authd.toml")
        (sourceOf "distributed-ftp/users.json")
        (sourceOf userFiles.etc)
      ]
      ++ lib.optional (cfg.administrators != { }) administratorsFile;
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = import ./hardening.nix // {
        Type = "notify";
        ExecStart = toString (
          [ "${lib.getExe' cfg.package "authd"} --config /etc/distributed-ftp/authd.toml" ]
          ++ secretFlags (name: "%d/${name}")
        );
        ExecStartPre = userFiles.command;
        ExecReload = [
          userFiles.command
          "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID"
        ];
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") secrets;
        DynamicUser = true;
        # For the audit trail; authd writes no other files.
        LogsDirectory = lib.mkIf (cfg.audit.log == "file") "authd";
        SupplementaryGroups = "authd-files";

        Restart = "on-failure";
        RestartSec = 2;
        RestartPreventExitStatus = 78;
        WatchdogSec = 30;
        # Each failed login is one log line, and the throttle limits their number. journald's own rate limit
        # could drop important lines.
        LogRateLimitIntervalSec = 0;
        TimeoutStopSec = cluster.seconds (cfg.authd.settings.stop_timeout or "10s") + 10;
        # authd has one connection for each login in progress.
        LimitNOFILE = 16384;
        TasksMax = 1024;

        AmbientCapabilities = lib.optional (own.port < 1024) "CAP_NET_BIND_SERVICE";
        # Needed for a port below 1024.
        CapabilityBoundingSet = if own.port < 1024 then "CAP_NET_BIND_SERVICE" else "";
        PrivateUsers = own.port >= 1024;
      };
    };

    services.logrotate.settings = lib.mkIf (cfg.audit.log == "file") {
      authd = cluster.logRotation // {
        files = "${logsDirectory}/*.log";
        # SIGHUP makes authd reopen the file.
        postrotate = "${lib.getExe' pkgs.systemd "systemctl"} reload authd.service";
      };
    };
  };
}
