# What every role needs: the options, their assertions, and the hosts' shared parts.
{
  imports = [
    ./options
    ./assertions.nix
    ./firewall.nix
    ./secrets.nix
  ];
}
