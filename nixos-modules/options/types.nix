# Types that several options share.
{ lib }:
let
  inherit (lib) mkOption types;
in
{
  # No host names: nginx would need a resolver, and firewall rules match addresses.
  address = types.strMatching "[0-9a-fA-F.:]+" // {
    description = "IP address";
  };

  # The firewall takes addresses and networks alike.
  network = types.strMatching "[0-9a-fA-F.:]+(/[0-9]+)?" // {
    description = "IP address or network in CIDR form";
  };

  # IFNAMSIZ of the kernel is 16, with the zero at the end.
  interfaceName = types.strMatching "[a-zA-Z0-9_.@-]{1,15}" // {
    description = "name of a network interface";
  };

  # As in common/src/registry/options.rs, but without a password, because the store is world-readable.
  redisUrl =
    let
      host = "([^]@:/?#[]+|\\[[0-9a-fA-F:.]+])(:[0-9]+)?";
    in
    types.strMatching "${host}|rediss?://([^@:/?#]+@)?${host}(/[0-9]*)?|unix:///[^@?#]+(\\?db=[0-9]+)?"
    // {
      description = "HOST[:PORT], redis://[USER@]HOST[:PORT][/DB], the same with rediss:// for TLS, or unix:///PATH";
    };

  # As `redis_sentinels` of the daemons, without user and password.
  sentinel = types.strMatching "(rediss://)?([^]@:/?#[]+|\\[[0-9a-fA-F:.]+])(:[0-9]+)?" // {
    description = "HOST[:PORT] or rediss://HOST[:PORT]";
  };

  # The subset of the daemons' durations that the modules can compute with.
  duration = types.strMatching "[0-9]+(ms|s|m|h|d)" // {
    description = "duration such as 500ms, 30s or 5m";
  };

  portRange = types.submodule {
    options = {
      from = mkOption {
        type = types.port;
        example = 50000;
        description = "First port.";
      };
      to = mkOption {
        type = types.port;
        example = 50299;
        description = "Last port.";
      };
    };
  };
}
