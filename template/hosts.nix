# The settings of each host: hardware, network, and SSH keys. If nixos-generate-config has written a
# hardware-configuration.nix, import it and remove the same settings here.
let
  host = address: {
    nixpkgs.hostPlatform = "x86_64-linux";
    system.stateVersion = "26.05";

    # Two partitions with these labels, as in the installation chapter of the NixOS manual.
    boot.loader.systemd-boot.enable = true;
    boot.loader.efi.canTouchEfiVariables = true;
    fileSystems."/" = {
      device = "/dev/disk/by-label/nixos";
      fsType = "ext4";
    };
    fileSystems."/boot" = {
      device = "/dev/disk/by-label/boot";
      fsType = "vfat";
    };
    # Drivers of the disks and network cards of common servers and virtual machines.
    hardware.enableRedistributableFirmware = true;
    boot.initrd.availableKernelModules = [
      "ahci"
      "nvme"
      "sd_mod"
      "virtio_blk"
      "virtio_pci"
      "virtio_scsi"
      "xhci_pci"
    ];

    # A single network card is then eth0, whatever its slot. With several cards set this to true, and use
    # the names that `ip -brief link` shows.
    networking.usePredictableInterfaceNames = false;
    networking.useDHCP = false;
    networking.interfaces.eth0.ipv4.addresses = [
      {
        inherit address;
        prefixLength = 24;
      }
    ];
    networking.defaultGateway = {
      address = "10.0.0.1";
      interface = "eth0";
    };
    networking.nameservers = [ "10.0.0.1" ];

    # Deployments log in as root with this key. Replace it with your own: `cat ~/.ssh/id_ed25519.pub`.
    services.openssh.enable = true;
    services.openssh.settings.PasswordAuthentication = false;
    users.users.root.openssh.authorizedKeys.keys = [
      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleOnlyReplaceThisKeyExampleOnlyReplaceThis admin@example.com"
    ];
  };
in
{
  ftp1 = host "10.0.0.11";
  ftp2 = host "10.0.0.12";
  ftp3 = host "10.0.0.13";
  lb1 = host "10.0.0.10";
  backend1 = host "10.0.0.20";
}
