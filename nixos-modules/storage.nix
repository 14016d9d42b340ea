# The storage role: the mount on nodes, the export on the storage host, ownership by the nodes' user.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.distributedFtp;
  cluster = import ./cluster.nix { inherit lib config; };
  inherit (cfg.cluster) storage;

  isNetwork = lib.elem storage.type [
    "nfs"
    "cephfs"
    "glusterfs"
  ];
  mounts = cluster.isNode && isNetwork && !cluster.isStorage && storage.device != null;
  # The exporting host uses its own directory: an NFS mount of itself can deadlock.
  binds = cluster.isNode && cluster.isStorage && storage.export != storage.mountPoint;

  owned = {
    mode = "0750";
    user = toString storage.uid;
    group = toString storage.gid;
  };
  retry = "distributed-ftp-storage-retry";

  exportsFile = "exports.d/distributed-ftp.exports";
  exportOptions = lib.concatStringsSep "," [
    "rw"
    # The server confirms a write only when it is on disk: 226 depends on it.
    "sync"
    "no_subtree_check"
    # All files belong to the nodes' user; no node acts as root on the storage.
    "root_squash"
  ];
  exportAll = "${lib.getExe' pkgs.nfs-utils "exportfs"} -r";
in
{
  imports = [ ./common.nix ];

  config = lib.mkMerge [
    (lib.mkIf mounts {
      boot.supportedFilesystems = {
        nfs = lib.mkIf (storage.type == "nfs") true;
        glusterfs = lib.mkIf (storage.type == "glusterfs") true;
        ceph = lib.mkIf (storage.type == "cephfs") true;
      };
      # For mount.ceph; NixOS adds the programs for the other types.
      system.fsPackages = lib.optional (storage.type == "cephfs") pkgs.ceph;

      systemd.mounts = [
        {
          description = "Files of Distributed FTP";
          what = storage.device;
          where = storage.mountPoint;
          type =
            {
              nfs = "nfs4";
              cephfs = "ceph";
              glusterfs = "glusterfs";
            }
            .${storage.type};
          options = lib.concatStringsSep "," (storage.mountOptions ++ storage.extraMountOptions);
          wants = [ "network-online.target" ];
          after = [ "network-online.target" ];
          wantedBy = [ "multi-user.target" ];
          # The server may boot later than this host, or refuse while it is being set up: retry the mount, and
          # then the node.
          unitConfig.OnFailure = "${retry}.service";
        }
      ];
      systemd.services.${retry} = {
        description = "Try again to mount the files of Distributed FTP";
        serviceConfig.Type = "oneshot";
        script = ''
          sleep 10
          systemctl start --no-block ftpd.service
        '';
      };
    })

    (lib.mkIf binds {
      systemd.mounts = [
        {
          description = "Files of Distributed FTP";
          what = storage.export;
          where = storage.mountPoint;
          type = "none";
          options = "bind,nodev,nosuid,noexec";
          wantedBy = [ "multi-user.target" ];
        }
      ];
    })

    (lib.mkIf (cluster.isNode && storage.type == "directory") {
      systemd.tmpfiles.settings.distributed-ftp.${storage.mountPoint}.d = owned;
    })

    (lib.mkIf (cluster.isStorage && storage.export != null) {
      systemd.tmpfiles.settings.distributed-ftp.${storage.export}.d = owned;

      services.nfs.server.enable = true;
      # A separate file, which exportfs reads like /etc/exports. With services.nfs.server.exports NixOS would
      # restart the server for every new node, and all nodes would wait for its grace period.
      environment.etc.${exportsFile}.text = "${storage.export} ${
        toString (map (address: "${address}(${exportOptions})") cluster.nodeAddresses)
      }\n";
      systemd.services.distributed-ftp-exports = {
        description = "NFS export of the files of Distributed FTP";
        wantedBy = [ "multi-user.target" ];
        # The server exports everything at its start; this unit applies later changes.
        requires = [ "nfs-server.service" ];
        after = [ "nfs-server.service" ];
        reloadTriggers = [ config.environment.etc.${exportsFile}.source ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = exportAll;
          ExecReload = exportAll;
        };
      };
      services.nfs.settings.nfsd = {
        # The nodes use NFS 4.2, which needs one port and no rpcbind.
        vers3 = false;
        # How long the files of a dead node stay locked, and how long clients wait after a restart of the
        # server.
        lease-time = storage.leaseSeconds;
        grace-time = storage.leaseSeconds;
      };
      # The directory may be a mount point.
      systemd.services.nfs-server.unitConfig.RequiresMountsFor = storage.export;
    })
  ];
}
