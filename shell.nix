# The development shell, for Nix without flakes: `nix-shell`.
{ ... }@arguments: (import ./. arguments).devShell
