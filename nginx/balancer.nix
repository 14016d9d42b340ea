# Nodes and ports → nginx.conf of an nginx that is only the balancer.
{ lib }:
{
  # The arguments of stream.nix.
  stream,
  pid,
  errorLog ? "stderr",
  # Directive that loads the stream module, for an nginx with the module in a separate file.
  loadModule ? "",
  # Simultaneous client connections to all nodes together.
  clients,
  # Limit of open files. More than needed, so that it need not change with the size of the cluster: only a
  # restart changes a process's limit.
  files,
  # nginx duration: how long old workers may go on after a reload.
  shutdownTimeout,
}:
let
  fill = import ./fill.nix { inherit lib; };
  dataPorts = node: lib.max 0 (node.slice.to - node.slice.from + 1);
  ports =
    if stream.carriesData or false then
      lib.foldl' (sum: node: sum + dataPorts node) 2 stream.nodes
    else
      2;
  listeners = lib.length stream.listenAddresses * ports;

  text = fill "nginx.conf" {
    load_module = loadModule;
    inherit pid;
    error_log = errorLog;
    worker_processes = "auto";
    # The limit of each worker. A proxied connection may need two open files.
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
