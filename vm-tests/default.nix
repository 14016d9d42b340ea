{
  lib,
  pkgs,
  self,
}:
{ }
