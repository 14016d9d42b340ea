# Checks that the parts of the template agree: the secrets with the units that read them, the deployment
# with the cluster's description. → list of problems
{
  lib,
  self,
  nixpkgs,
}:
let
  template = import ./template.nix { inherit self nixpkgs; };

  secretsIn = lib.filter (lib.hasPrefix "/run/secrets/");
  # { path → units } from { unit → paths }.
  inverted =
    paths:
    lib.mapAttrs (_: lib.naturalSort) (
      lib.foldAttrs (unit: units: [ unit ] ++ units) [ ] (
        lib.mapAttrsToList (unit: paths: lib.genAttrs (secretsIn paths) (_: "${unit}.service")) paths
      )
    );

  # Files that a unit reads at its start: credentials, and for Redis the file of its password.
  readAtStart =
    config:
    inverted (
      lib.mapAttrs (
        unit: service:
        map (credential: lib.last (lib.splitString ":" credential)) (
          lib.toList (service.serviceConfig.LoadCredential or [ ])
        )
        ++ lib.optional (unit == "redis-ftp") (toString config.services.redis.servers.ftp.requirePassFile)
      ) config.systemd.services
    );
  # Files that a unit also reads at a reload: the lists of run-files.nix, one name and path a line.
  readAtReload =
    config:
    inverted (
      lib.mapAttrs'
        (
          name: etc:
          lib.nameValuePair (lib.removeSuffix ".files" (baseNameOf name)) (
            lib.concatMap (line: lib.drop 1 (lib.splitString " " line)) (lib.splitString "\n" etc.text)
          )
        )
        (
          lib.filterAttrs (
            name: _: lib.hasPrefix "distributed-ftp/" name && lib.hasSuffix ".files" name
          ) config.environment.etc
        )
    );

  declared =
    units: config:
    lib.filterAttrs (_: units: units != [ ]) (
      lib.mapAttrs' (
        _: secret: lib.nameValuePair secret.path (lib.naturalSort secret.${units})
      ) config.sops.secrets
    );

  secretsOf =
    name:
    { config, ... }:
    let
      compare =
        units: needed: given:
        lib.optional (needed != given)
          "${name}: ${units} of its secrets are ${builtins.toJSON given}, and should be ${builtins.toJSON needed}";
    in
    compare "restartUnits" (readAtStart config) (declared "restartUnits" config)
    ++ compare "reloadUnits" (readAtReload config) (declared "reloadUnits" config);

  # The address of a host in the cluster's description.
  targetsOf =
    name: host:
    let
      inherit (host.config.services.distributedFtp) cluster;
      described = cluster.auth // cluster.balancers // cluster.nodes;
      target = host.config.deployment.targetHost;
    in
    lib.optional (target != described.${name}.address) "${name} is deployed to ${target}";
in
lib.concatLists (
  lib.mapAttrsToList secretsOf template.nixosConfigurations
  ++ lib.mapAttrsToList targetsOf template.colmenaHive
)
++ lib.optional (
  lib.attrNames template.colmenaHive != lib.attrNames template.nixosConfigurations
) "colmena knows other hosts"
