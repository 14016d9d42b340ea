# services.distributedFtp.cluster.storage: the storage and how the nodes mount it.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.distributedFtp.cluster.storage;
  cluster = import ../cluster.nix { inherit lib config; };

  # The nodes' promises depend on these options.
  common = [
    # Clients choose the content: no devices, programs or set-user-ID files.
    "nodev"
    "nosuid"
    "noexec"
    # A read must not cause a write.
    "noatime"
    # Mounted after the network. The boot does not wait for the mount; ftpd does (RequiresMountsFor).
    "_netdev"
    "nofail"
  ];
  defaults = {
    nfs = common ++ [
      # One protocol, one port; leases and sessions recover after a restart of either side.
      "vers=4.2"
      # While the server is away, writers wait. `soft` would return errors for data that had been accepted,
      # and leave holes in confirmed files.
      "hard"
      # Missing names are not cached, so that a name that another node creates is visible at once.
      "lookupcache=positive"
      # Greatest age of cached attributes, in seconds.
      "acregmin=1"
      "acdirmin=1"
      "acregmax=5"
      "acdirmax=5"
      # How long the mount is retried, in minutes: hosts may boot in any order.
      "retry=100000"
    ];
    # CephFS capabilities keep the clients' caches coherent. A client that the cluster has evicted gets write
    # errors (recover_session=no is the default), so that no 226 covers lost data.
    cephfs = common;
    glusterfs = common ++ [
      # Changes of another node are visible within a second, new names at once.
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
        The kind of storage that all nodes use. `directory`: a plain directory, for a cluster with one
        node. `none`: every node mounts something on `mountPoint` by other means.
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
      description = "The device to mount. Required for cephfs, in the form of mount.ceph(8).";
    };

    host = mkOption {
      type = types.nullOr types.str;
      default = if cfg.type == "nfs" then cluster.hostAt cfg.server else null;
      defaultText = lib.literalMD "with nfs, the host of the cluster that has the address `server`";
      example = "storage1";
      description = "nfs: name of the host that this module makes the NFS server; null if the server exists already.";
    };

    mountPoint = mkOption {
      type = types.strMatching "/.+";
      default = "/srv/ftp";
      example = "/srv/ftp";
      description = "Directory of the files on the nodes. Homes are relative to it.";
    };

    mountOptions = mkOption {
      type = types.listOf types.str;
      default = defaults.${cfg.type};
      defaultText = lib.literalMD ''
        chosen for the type so that the nodes keep their promises; for nfs:
        `${lib.concatStringsSep "," defaults.nfs}`
      '';
      example = [
        "vers=4.2"
        "hard"
        "lookupcache=none"
      ];
      description = "Mount options, instead of the default ones of the type.";
    };

    extraMountOptions = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "name=ftp"
        "secretfile=/run/secrets/ceph"
      ];
      description = "Further mount options.";
    };

    leaseSeconds = mkOption {
      type = types.ints.between 10 3600;
      default = 15;
      example = 90;
      description = ''
        nfs: lease and grace time of the server that this module sets up. For this long after the server or a
        node has failed, files that it had open may stay locked for others.
      '';
    };

    uid = mkOption {
      type = types.ints.positive;
      default = 2121;
      example = 2121;
      description = "User ID of the nodes' user, who owns the files: NFS identifies users by number.";
    };

    gid = mkOption {
      type = types.ints.positive;
      default = 2121;
      example = 2121;
      description = "Group ID of the nodes' group.";
    };
  };
}
