# The storage: mounted on nodes, exported by its host, and owned by the nodes' user.
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
  # The host that exports the files reads its own directory: NFS from itself can lock up.
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
    # What a node was told is written, is written: 226 stands on it.
    "sync"
    "no_subtree_check"
    # The nodes' user owns everything; no node needs root here.
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
      # mount.ceph; for the others NixOS knows what is needed.
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
          # A server that boots later than this host, or says no because it is half set up, is tried
          # again, and the node with it.
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
      # A file of our own, which exportfs reads like /etc/exports. With services.nfs.server.exports NixOS
      # would restart the server for every new node, and all nodes would wait for its grace period.
      environment.etc.${exportsFile}.text = "${storage.export} ${
        toString (map (address: "${address}(${exportOptions})") cluster.nodeAddresses)
      }\n";
      systemd.services.distributed-ftp-exports = {
        description = "NFS export of the files of Distributed FTP";
        wantedBy = [ "multi-user.target" ];
        # The server itself exports everything when it starts; this is for changes.
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
        # The nodes speak 4.2: one port, and no rpcbind in the way.
        vers3 = false;
        # How long files of a node that died stay locked, and how long everybody waits for everybody
        # after a restart.
        lease-time = storage.leaseSeconds;
        grace-time = storage.leaseSeconds;
      };
      # The directory may be a file system of its own.
      systemd.services.nfs-server.unitConfig.RequiresMountsFor = storage.export;
    })
  ];
}
