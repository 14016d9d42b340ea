# Nodes and ports → the configuration of an nginx that only balances: nginx.conf, filled.
{ lib }:
{
  # The arguments of stream.nix.
  stream,
  pid,
  errorLog ? "stderr",
  # Directive that loads the stream module, for an nginx that has it as a file of its own.
  loadModule ? "",
  # Client connections at once, control and data, over all nodes.
  clients,
  # How many files the process may open. More than it needs, so that it need not follow the cluster's
  # size: a process's own limit changes by a restart only.
  files,
  # Duration as nginx writes it: how long old workers may go on after a reload.
  shutdownTimeout,
}:
let
  fill = import ./fill.nix { inherit lib; };
  portsOf = node: lib.max 0 (node.slice.to - node.slice.from + 1);
  listeners =
    lib.length stream.listenAddresses * (2 + lib.foldl' (sum: node: sum + portsOf node) 0 stream.nodes);

  text = fill "nginx.conf" {
    load_module = loadModule;
    inherit pid;
    error_log = errorLog;
    worker_processes = "auto";
    # Each worker has this limit for itself. A proxied connection may need two files.
    worker_connections = toString (lib.min (files / 2) (2 * clients + listeners + 64));
    worker_rlimit_nofile = toString files;
    worker_shutdown_timeout = shutdownTimeout;
    stream = import ./stream.nix { inherit lib; } stream;
  };
in
assert lib.assertMsg (
  !(lib.hasInfix "@" text)
) "nginx/balancer.nix: a placeholder is left in\n${text}";
text
