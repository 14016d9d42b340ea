# The cluster: every host imports this file and takes its roles from its own name.
{
  services.distributedFtp = {
    enable = true;
    openFirewall = true;

    cluster = {
      externalAddress = "203.0.113.10";
      passivePorts = {
        from = 50000;
        to = 50299;
      };
      nodes.ftp1.address = "10.0.0.11";
      nodes.ftp2.address = "10.0.0.12";
      nodes.ftp3.address = "10.0.0.13";
      balancers.lb1.address = "10.0.0.10";
      auth.backend1.address = "10.0.0.20";
      redis.address = "10.0.0.20";
      storage = {
        type = "nfs";
        server = "10.0.0.20";
        export = "/srv/ftp";
      };
    };

    # Files on each host, created by sops-nix, agenix or by hand. Only root reads them.
    secrets = {
      nodeTokenFile = "/run/secrets/ftp-node-token";
      redisPasswordFile = "/run/secrets/ftp-redis-password";
    };

    # The file is on backend1 and contains the output of `authd hash-password`.
    users.demo = {
      hashedPasswordFile = "/run/secrets/ftp-user-demo";
      home = "/demo";
    };
  };
}
