# What each host has of its own. Replace it with the files that nixos-generate-config made there.
let
  host = address: {
    nixpkgs.hostPlatform = "x86_64-linux";
    system.stateVersion = "26.05";
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
    networking.interfaces.eth0.ipv4.addresses = [
      {
        inherit address;
        prefixLength = 24;
      }
    ];
    services.openssh.enable = true;
  };
in
{
  ftp1 = host "10.0.0.11";
  ftp2 = host "10.0.0.12";
  ftp3 = host "10.0.0.13";
  lb1 = host "10.0.0.10";
  backend1 = host "10.0.0.20";
}
