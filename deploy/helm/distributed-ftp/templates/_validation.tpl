{{/* Values that cannot work together. Each message names the value and what to do. */}}
{{- define "ftp.validate" -}}
{{- $v := .Values -}}
{{- $scaler := $v.autoscaling -}}
{{- $scales := ne $scaler.type "none" -}}
{{- $manager := $v.tls.certManager -}}
{{- $from := int $v.passivePorts.from -}}
{{- $to := int $v.passivePorts.to -}}
{{- if gt $from $to -}}
{{- fail (printf "passivePorts: from (%d) is above to (%d)" $from $to) -}}
{{- end -}}
{{- $blocks := div (add1 (sub $to $from)) (int $v.passivePorts.blockPorts) -}}
{{- $nodes := ternary (int $scaler.maxReplicas) (int $v.ftpd.replicas) $scales -}}
{{- if lt $blocks $nodes -}}
{{- fail (printf (print
  "passivePorts: the range has %d blocks, and there may be %d nodes, which need one each: widen the "
  "range, or lower passivePorts.blockPorts") $blocks $nodes) -}}
{{- end -}}
{{- range $port := list 2121 2990 9121 9122 -}}
{{- if and (ge $port $from) (le $port $to) -}}
{{- fail (printf "passivePorts: the range contains %d, a port of the containers: move the range" $port) -}}
{{- end -}}
{{- end -}}
{{- if and $scales (gt (int $scaler.minReplicas) (int $scaler.maxReplicas)) -}}
{{- fail "autoscaling: minReplicas is above maxReplicas" -}}
{{- end -}}
{{- if and $scales (gt (int (include "ftp.grace" (list "ftpd" $v.ftpd))) 1800) -}}
{{- fail (print
  "autoscaling: nodes may be removed one in each termination period, for which Kubernetes allows at "
  "most 1800 s: set ftpd.settings.drain_timeout to 29m or less") -}}
{{- end -}}
{{- if and (eq $v.service.type "NodePort") (or (lt $from 30000) (gt $to 32767)) -}}
{{- fail (printf (print
  "service.type is NodePort: passive ports have the same number outside and inside, so set passivePorts"
  " to a range within 30000-32767 (it is %d-%d)") $from $to) -}}
{{- end -}}
{{- range $name, $port := $v.service.nodePorts -}}
{{- if and (eq $v.service.type "NodePort") (ge (int $port) $from) (le (int $port) $to) -}}
{{- fail (printf "service.nodePorts.%s is %d, which is a passive port: choose another" $name (int $port)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.service.type "None") (not $v.ftpd.hostPorts.enabled) -}}
{{- fail "service.type is None: clients reach no node, unless ftpd.hostPorts.enabled is true" -}}
{{- end -}}
{{- if and $v.ftpd.hostPorts.enabled $v.relay.enabled -}}
{{- fail (print
  "ftpd.hostPorts.enabled and relay.enabled: clients would reach the nodes past the relays, which the "
  "nodes refuse without a PROXY header; choose one") -}}
{{- end -}}
{{- if and $v.externalAddress $v.externalAddressFromHost -}}
{{- fail "externalAddress and externalAddressFromHost: choose one" -}}
{{- end -}}
{{- if and $v.relay.enabled (not $v.relay.podNetworks) -}}
{{- fail (print
  "relay.enabled: set relay.podNetworks to the networks of the pods, or the nodes refuse the relays' "
  "PROXY headers") -}}
{{- end -}}
{{- $storages := 0 -}}
{{- if $v.storage.existingClaim }}{{ $storages = add1 $storages }}{{ end -}}
{{- if $v.storage.claim.enabled }}{{ $storages = add1 $storages }}{{ end -}}
{{- if $v.storage.volume }}{{ $storages = add1 $storages }}{{ end -}}
{{- if ne (int $storages) 1 -}}
{{- fail "storage: set exactly one of storage.existingClaim, storage.claim.enabled and storage.volume" -}}
{{- end -}}
{{- if and $v.storage.claim.enabled (not (has "ReadWriteMany" $v.storage.claim.accessModes)) (gt $nodes 1) -}}
{{- fail "storage.claim.accessModes: several nodes need ReadWriteMany" -}}
{{- end -}}
{{- if and $v.tls.existingSecret $manager.enabled -}}
{{- fail "tls: two certificates are named: set either existingSecret or certManager.enabled" -}}
{{- end -}}
{{- if and $manager.enabled (or (not $manager.dnsNames) (not $manager.issuerRef)) -}}
{{- fail "tls.certManager: set issuerRef and dnsNames" -}}
{{- end -}}
{{- if and $v.tls.required (not (include "ftp.hasTls" .)) -}}
{{- fail "tls.required: there is no certificate: set tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- $external := $v.redis.external -}}
{{- if and (not $v.redis.enabled) (not (or $external.url $external.urlSecret.name $v.redis.extraSettings)) -}}
{{- fail (print
  "redis.enabled is false: set redis.external.url, redis.external.urlSecret, or the settings of another"
  " way to Redis in redis.extraSettings") -}}
{{- end -}}
{{- if and $external.url $external.urlSecret.name -}}
{{- fail "redis.external: set either url or urlSecret" -}}
{{- end -}}
{{- if and $v.authd.existingUsersSecret (or $v.authd.users $v.authd.groups) -}}
{{- fail "authd: set either existingUsersSecret, or users and groups" -}}
{{- end -}}
{{- $isOutside := has $v.service.type (list "LoadBalancer" "NodePort") -}}
{{- $isHidden := and $isOutside (eq $v.service.externalTrafficPolicy "Cluster") -}}
{{- if and $isHidden (not $v.service.trustedBalancers) -}}
{{- fail (print
  "service.externalTrafficPolicy is Cluster: all clients would have addresses of the cluster, and share"
  " limits and bans. Set Local, or let the balancer send PROXY headers and name its networks in "
  "service.trustedBalancers") -}}
{{- end -}}
{{- end }}
