# services.distributedFtp.cluster.storage: where the files are, and how the nodes mount them.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.distributedFtp.cluster.storage;
  cluster = import ../cluster.nix { inherit lib config; };

  # The nodes' promises rest on these options; each has its reason here.
  common = [
    # Data belongs to strangers: nothing in it is a device, a program, or privileged.
    "nodev"
    "nosuid"
    "noexec"
    # A read is no reason to write.
    "noatime"
    # After the network, and no boot waits for it: ftpd does, by RequiresMountsFor.
    "_netdev"
    "nofail"
  ];
  defaults = {
    nfs = common ++ [
      # One protocol, one port; leases and sessions that recover after either side restarts.
      "vers=4.2"
      # A server that is away stalls writers. `soft` would return errors for data that had been
      # accepted, and leave holes in files that are confirmed.
      "hard"
      # A name that another node has just made is there at once: misses are not cached.
      "lookupcache=positive"
      # Attributes of another node's files are at most this old, in seconds.
      "acregmin=1"
      "acdirmin=1"
      "acregmax=5"
      "acdirmax=5"
      # The mount goes on trying, in minutes: hosts may boot in any order.
      "retry=100000"
    ];
    # Capabilities keep the clients' caches coherent by themselves. A client that the cluster shut
    # out fails its writes (recover_session=no is the default), so that no 226 covers lost data.
    cephfs = common;
    glusterfs = common ++ [
      # What another node changed shows within a second, and a new name at once.
      "attribute-timeout=1"
      "entry-timeout=1"
      "negative-timeout=0"
    ];
    directory = [ ];
    none = [ ];
  };
in
{
  options.services.distributedFtp.cluster.storage = {
    type = mkOption {
      type = types.enum [
        "nfs"
        "cephfs"
        "glusterfs"
        "directory"
        "none"
      ];
      default = "none";
      example = "nfs";
      description = ''
        What the files of all nodes are on. `directory`: a plain directory, for a cluster with one
        node. `none`: something is mounted on `mountPoint` by other means, on every node.
      '';
    };

    server = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "10.0.0.20";
      description = "nfs: the server. glusterfs: one of its servers.";
    };

    export = mkOption {
      type = types.nullOr (types.strMatching "/.*");
      default = null;
      example = "/srv/ftp";
      description = "nfs: the exported directory. glusterfs: the volume, as `/volume`.";
    };

    device = mkOption {
      type = types.nullOr types.str;
      default =
        if
          lib.elem cfg.type [
            "nfs"
            "glusterfs"
          ]
          && cfg.server != null
          && cfg.export != null
        then
          "${cluster.bracketed cfg.server}:${cfg.export}"
        else
          null;
      defaultText = lib.literalMD "`server:export` for nfs and glusterfs";
      example = "ftp@.data=/ftp";
      description = "What is mounted. To be set for cephfs, as mount.ceph(8) describes it.";
    };

    host = mkOption {
      type = types.nullOr types.str;
      default = if cfg.type == "nfs" then cluster.hostAt cfg.server else null;
      defaultText = lib.literalMD "with nfs, the host of the cluster that has the address `server`";
      example = "storage1";
      description = "nfs: name of the host that this module makes the server; null if it exists already.";
    };

    mountPoint = mkOption {
      type = types.strMatching "/.+";
      default = "/srv/ftp";
      example = "/srv/ftp";
      description = "Where the files are on the nodes. Homes are relative to it.";
    };

    mountOptions = mkOption {
      type = types.listOf types.str;
      default = defaults.${cfg.type};
      defaultText = lib.literalMD ''
        chosen for the type such that the nodes keep their promises; for nfs:
        `${lib.concatStringsSep "," defaults.nfs}`
      '';
      example = [
        "vers=4.2"
        "hard"
        "lookupcache=none"
      ];
      description = "Mount options, in place of those that fit the type.";
    };

    extraMountOptions = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "name=ftp"
        "secretfile=/run/secrets/ceph"
      ];
      description = "Mount options beside those.";
    };

    leaseSeconds = mkOption {
      type = types.ints.between 10 3600;
      default = 15;
      example = 90;
      description = ''
        nfs: lease and grace time of the server that this module makes. For so long after the server
        or a node went away, files that it had open may be locked for others.
      '';
    };

    uid = mkOption {
      type = types.ints.positive;
      default = 2121;
      example = 2121;
      description = "The number of the nodes' user, who owns the files: NFS knows users by number.";
    };

    gid = mkOption {
      type = types.ints.positive;
      default = 2121;
      example = 2121;
      description = "The number of the nodes' group.";
    };
  };
}
