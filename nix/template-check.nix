# The parts of the template agree with each other: the secrets with the units that read them, and the
# deployment with the cluster's description. → list of problems
{
  lib,
  self,
  nixpkgs,
}:
let
  template = import ./template.nix { inherit self nixpkgs; };

  # The files below /run/secrets that a unit reads: credentials, or with Redis its password file.
  readBy =
    config: unit:
    lib.filter (lib.hasPrefix "/run/secrets/") (
      map (credential: lib.last (lib.splitString ":" credential)) (
        lib.toList (config.systemd.services.${unit}.serviceConfig.LoadCredential or [ ])
      )
      ++ lib.optional (unit == "redis-ftp") (toString config.services.redis.servers.ftp.requirePassFile)
    );
  # { file → units }, as the host's units read them and as the template's secrets.nix says.
  readers =
    config:
    lib.foldAttrs (unit: units: [ unit ] ++ units) [ ] (
      map (unit: lib.genAttrs (readBy config unit) (_: "${unit}.service")) (
        lib.attrNames config.systemd.services
      )
    );
  declared =
    config:
    lib.mapAttrs' (
      _: secret: lib.nameValuePair secret.path (lib.naturalSort secret.restartUnits)
    ) config.sops.secrets;

  secretsOf =
    name: host:
    let
      needed = builtins.toJSON (lib.mapAttrs (_: lib.naturalSort) (readers host.config));
      given = builtins.toJSON (declared host.config);
    in
    lib.optional (
      needed != given
    ) "${name}: its units read ${needed}, and secrets.nix declares ${given}";

  # Where the description says that a host is.
  targetsOf =
    name: host:
    let
      inherit (host.config.services.distributedFtp) cluster;
      described = lib.foldl' (found: members: found // members) { } [
        cluster.auth
        cluster.balancers
        cluster.nodes
      ];
    in
    lib.optional (
      host.config.deployment.targetHost != described.${name}.address
    ) "${name} is deployed to ${host.config.deployment.targetHost}";
in
lib.concatLists (
  lib.mapAttrsToList secretsOf template.nixosConfigurations
  ++ lib.mapAttrsToList targetsOf template.colmenaHive
)
++ lib.optional (
  lib.attrNames template.colmenaHive != lib.attrNames template.nixosConfigurations
) "colmena knows other hosts"
