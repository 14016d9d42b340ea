{{/* The first part of all names. At most 40 characters, because labels and names of pods are longer. */}}
{{- define "ftp.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that select the pods of a part: (list $ "ftpd"). */}}
{{- define "ftp.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: distributed-ftp
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "ftp.labels" -}}
{{- $root := index . 0 -}}
{{ include "ftp.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods. Without the chart's version, so that an upgrade restarts only pods that change. */}}
{{- define "ftp.podLabels" -}}
{{ include "ftp.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name, namespace and labels of an object: (list $ "ftpd" "name-suffix"). */}}
{{- define "ftp.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "ftp.name" $root }}{{ with index . 2 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "ftp.labels" (list $root (index . 1)) | nindent 2 }}
{{- end }}

{{/* An image of ours: (list $ "ftpd"). */}}
{{- define "ftp.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- $part := index . 1 -}}
{{- with $images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ get $images $part }}:
{{- coalesce (get $images.tags $part) $images.tag (index . 0).Chart.AppVersion -}}
{{- end }}

{{/* A duration of a setting (500ms, 30s, 5m, 7d) in whole seconds, rounded up: (list "setting" "5m"). */}}
{{- define "ftp.seconds" -}}
{{- $text := toString (index . 1) -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m|h|d)$" $text) -}}
{{- fail (printf "%s is %q: expected a duration such as 500ms, 30s or 5m" (index . 0) $text) -}}
{{- end -}}
{{- $number := regexFind "^[0-9]+" $text | atoi -}}
{{- $unit := regexFind "[a-z]+$" $text -}}
{{- if eq $unit "ms" -}}
{{- div (add $number 999) 1000 -}}
{{- else -}}
{{- mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit) -}}
{{- end -}}
{{- end }}

{{/* Settings as TOML. A scalar or a list in JSON is also TOML. */}}
{{- define "ftp.toml" -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* Settings of a daemon in TOML: (list "ftpd.settings" $settings $computed). */}}
{{- define "ftp.config" -}}
{{- $where := index . 0 -}}
{{- $computed := index . 2 -}}
{{- range $key, $_ := index . 1 -}}
{{- if hasKey $computed $key -}}
{{- fail (printf (print
  "%s.%s: the chart computes this setting; "
  "set the value of the chart that it follows from") $where $key) -}}
{{- end -}}
{{- end -}}
{{ include "ftp.toml" (merge (dict) $computed (index . 1)) | trim }}
{{- end }}

{{- define "ftp.secretName" -}}
{{- default (include "ftp.name" .) .Values.secrets.existingSecret -}}
{{- end }}

{{- define "ftp.hasTls" -}}
{{- if or .Values.tls.existingSecret .Values.tls.certManager.enabled }}true{{ end -}}
{{- end }}

{{- define "ftp.tlsSecret" -}}
{{- default (printf "%s-tls" (include "ftp.name" .)) .Values.tls.existingSecret -}}
{{- end }}

{{- define "ftp.hasImplicit" -}}
{{- if and (include "ftp.hasTls" .) .Values.tls.implicit }}true{{ end -}}
{{- end }}

{{- define "ftp.hasRedisPassword" -}}
{{- if or .Values.redis.enabled .Values.redis.external.hasPassword }}true{{ end -}}
{{- end }}

{{- define "ftp.listen" -}}
{{- if .Values.ipv6Only }}[::]{{ else }}0.0.0.0{{ end -}}
{{- end }}

{{/* Settings of Redis, the same in all daemons, as JSON. */}}
{{- define "ftp.redisSettings" -}}
{{- $redis := .Values.redis -}}
{{- $settings := dict -}}
{{- if $redis.enabled -}}
{{- $host := printf "%s-redis.%s.svc" (include "ftp.name" .) .Release.Namespace -}}
{{- $_ := set $settings "redis_url" (printf "%s:6379" $host) -}}
{{- else if $redis.external.url -}}
{{- $_ := set $settings "redis_url" $redis.external.url -}}
{{- end -}}
{{- if include "ftp.hasRedisPassword" . -}}
{{- $_ := set $settings "redis_password_file" "/run/secrets/distributed-ftp/redis-password" -}}
{{- end -}}
{{- merge $settings $redis.extraSettings | toJson -}}
{{- end }}

{{/* The seconds that a pod may take to stop: (list "ftpd" $part). */}}
{{- define "ftp.grace" -}}
{{- $part := index . 1 -}}
{{- $setting := printf "%s.settings.drain_timeout" (index . 0) -}}
{{- $drain := include "ftp.seconds" (list $setting $part.settings.drain_timeout) -}}
{{- add $drain $part.preStopSeconds 30 -}}
{{- end }}

{{/*
The memory of a node whose limits are all reached at once, in MiB, rounded up to 2 GiB, 4 GiB and so on: a
session 128 KiB, a transfer and a relayed connection 8 MiB each, a file operation 1 MiB, listings twice their
limit, and 1 GiB for the rest. nixos-modules/node.nix has the same sum and its reasons.
*/}}
{{- define "ftp.memory" -}}
{{- $s := .Values.ftpd.settings -}}
{{- $connections := add (int64 $s.max_transfers) (int64 $s.max_relayed) -}}
{{- $needed := add (div (int64 $s.max_sessions) 8) (mul 8 $connections)
  (int64 $s.max_file_operations) (div (int64 $s.max_listing_memory) 524288) 1024 -}}
{{- $memory := 2048 -}}
{{- range until 12 -}}
{{- if lt $memory $needed -}}{{- $memory = mul 2 $memory -}}{{- end -}}
{{- end -}}
{{- $memory -}}
{{- end }}

{{/* Security context of all pods: the profile "restricted". (list $uid $group $fsGroup) */}}
{{- define "ftp.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ index . 0 }}
runAsGroup: {{ index . 0 }}
{{- with index . 1 }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ftp.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where the pods of a part run, and with which account: (list $ $part "ftpd" "ScheduleAnyway"). */}}
{{- define "ftp.scheduling" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
serviceAccountName: {{ include "ftp.serviceAccount" $root }}
automountServiceAccountToken: false
# Kubernetes would set variables such as AUTHD_PORT for Services. The daemons refuse variables that they do
# not know.
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- $selector := include "ftp.selector" (list $root (index . 2)) }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ index . 3 }}
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
{{- end }}

{{- define "ftp.serviceAccount" -}}
{{- $account := .Values.serviceAccount -}}
{{- default (ternary (include "ftp.name" .) "default" $account.create) $account.name -}}
{{- end }}

{{/* The keys of the Secret that a pod needs, as JSON: (list $ (list "node-token")). */}}
{{- define "ftp.secretKeys" -}}
{{- $keys := index . 1 -}}
{{- if include "ftp.hasRedisPassword" (index . 0) -}}
{{- $keys = append $keys "redis-password" -}}
{{- end -}}
{{- toJson $keys -}}
{{- end }}

{{/* The mounts of these keys, and of files for Redis: (list $ (list "node-token")). */}}
{{- define "ftp.secretMounts" -}}
{{- $redis := (index . 0).Values.redis -}}
{{- if include "ftp.secretKeys" . | fromJsonArray }}
- name: secrets
  mountPath: /run/secrets/distributed-ftp
  readOnly: true
{{- end }}
{{- if and (not $redis.enabled) $redis.external.filesSecret }}
- name: redis-files
  mountPath: /run/secrets/redis-files
  readOnly: true
{{- end }}
{{- end }}

{{/* Their volumes, with the same arguments. */}}
{{- define "ftp.secretVolumes" -}}
{{- $redis := (index . 0).Values.redis -}}
{{- with include "ftp.secretKeys" . | fromJsonArray }}
- name: secrets
  secret:
    secretName: {{ include "ftp.secretName" (index $ 0) }}
    defaultMode: 0440
    items:
      {{- range . }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}
{{- if and (not $redis.enabled) $redis.external.filesSecret }}
- name: redis-files
  secret:
    secretName: {{ $redis.external.filesSecret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* REDIS_URL from a Secret: (list $ "FTPD"). */}}
{{- define "ftp.redisEnv" -}}
{{- $external := (index . 0).Values.redis.external -}}
{{- if and (not (index . 0).Values.redis.enabled) $external.urlSecret.name }}
- name: {{ index . 1 }}_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $external.urlSecret.name }}
      key: {{ $external.urlSecret.key }}
{{- end }}
{{- end }}

{{/* The passive range as a list of ports. */}}
{{- define "ftp.passivePorts" -}}
{{- untilStep (int .Values.passivePorts.from) (int (add1 .Values.passivePorts.to)) 1 | toJson -}}
{{- end }}

{{/* What clients connect to: the relays, if there are any. */}}
{{- define "ftp.frontComponent" -}}
{{- ternary "relay" "ftpd" .Values.relay.enabled -}}
{{- end }}
