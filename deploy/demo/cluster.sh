# shellcheck shell=bash
# The demo cluster. `./dev up` starts it and keeps running; the other commands send requests to that process.

# Loopback addresses. Parts that need the same port have an address each. Redis has one at which the
# distribution's Redis does not listen.
REDIS=127.0.0.10:$REDIS_PORT
AUTHD=127.0.0.1:$AUTHD_PORT
# The nodes lease their passive ports in the registry, and ftp-relay finds the node that owns a port there.
NODES=(ftp1 ftp2 ftp3 ftp4 ftp5 ftp6)
NODE_ADDRESSES=(127.0.0.11 127.0.0.12 127.0.0.13 127.0.0.14 127.0.0.15 127.0.0.16)
FIRST_NODES=3
CLIENT_ADDRESSES=(127.0.0.1)
# A short lease: a node waits for a third of it and a second before it uses ports that it has taken.
NODE_LEASE=6s
# Values that the other commands need. They may run with other DEV_… variables than `./dev up` did.
KEPT=(CONTROL_PORT IMPLICIT_PORT PASSIVE_PORTS AUTHD_PORT REDIS_PORT ADMIN_PORT STORAGE DRAIN_TIMEOUT
  REDIS AUTHD CLIENT_ADDRESSES)
me=${DEV_COMMAND:-./dev}

# Set by signals. ending: end the cluster. hurry: do not wait for transfers.
ending='' hurry=''

# --- asking the parts -----------------------------------------------------------------------

# http METHOD ADDRESS:PORT PATH [HEADER]: prints the response, beginning with the status line.
http() (
  exec 2>/dev/null 3<>"/dev/tcp/${2%:*}/${2##*:}" || exit 1
  printf '%s %s HTTP/1.0\r\nContent-Length: 0\r\n%s\r\n' "$1" "$3" "${4+$4$'\r\n'}" >&3
  timeout 5 cat <&3
)

listens() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# can_log_in: succeeds if a client can log in through the balancer.
can_log_in() (
  exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$CONTROL_PORT" || exit 1
  printf 'USER demo\r\nPASS ready?\r\nQUIT\r\n' >&3
  while read -rt 2 line <&3; do [[ $line == 230* ]] && exit 0; done
  exit 1
)

# position NODE: prints the node's index in NODES.
position() {
  local i
  for i in "${!NODES[@]}"; do [[ ${NODES[i]} != "$1" ]] || { echo "$i"; return; }; done
  return 1
}

# admin PART: prints the address of the part's /readyz and /metrics.
admin() {
  case $1 in
    authd) echo "$AUTHD" ;;
    relay) echo "127.0.0.1:$ADMIN_PORT" ;;
    *) echo "${NODE_ADDRESSES[$(position "$1")]}:$ADMIN_PORT" ;;
  esac
}

# is_ready PART
is_ready() {
  case $1 in
    redis) listens "${REDIS%:*}" "$REDIS_PORT" ;;
    balancer) listens 127.0.0.1 "$CONTROL_PORT" ;;
    *) [[ $(http GET "$(admin "$1")" /readyz) == "HTTP/1."?" 200 "* ]] ;;
  esac
}

# transfers: prints the number of running transfers of all nodes.
transfers() {
  local node count=0 line
  for node in "${NODES[@]}"; do
    [[ ${pids[$node]-} ]] || continue
    line=$(http GET "$(admin "$node")" /metrics | grep '^ftp_transfers ' || true)
    [[ $line =~ \ ([0-9]+) ]] && count=$((count + BASH_REMATCH[1]))
  done
  echo "$count"
}

# --- starting -------------------------------------------------------------------------------------

# start_part PART: starts the part with its settings.
start_part() {
  local index address listen
  case $1 in
    redis)
      start redis redis-server --bind "${REDIS%:*}" --port "$REDIS_PORT" --dir "$state" \
        --save '' --appendonly no
      ;;
    authd)
      start authd "$daemons/authd" --demo --listen "$AUTHD" --redis-url "$REDIS" \
        --node-token-file "$state/node-token" --admin-token-file "$state/admin-token"
      ;;
    balancer)
      balancer_configuration >"$state/nginx.conf"
      start balancer nginx -p "$state" -c nginx.conf -e stderr -g 'daemon off;'
      ;;
    relay)
      # Addresses without the brackets of nginx.
      listen=${CLIENT_ADDRESSES[*]//[][]/}
      start relay "$daemons/ftp-relay" --listen "${listen// /,}" --admin-listen "$(admin relay)" \
        --passive-port-min "${PASSIVE_PORTS%-*}" --passive-port-max "${PASSIVE_PORTS#*-}" \
        --drain-timeout "${DRAIN_TIMEOUT}s" --map-refresh 1s --redis-url "$REDIS"
      ;;
    *)
      index=$(position "$1")
      address=${NODE_ADDRESSES[index]}
      start "$1" "$daemons/ftpd" --node-name "$1" --node-lease "$NODE_LEASE" \
        --listen "$address" --port "$CONTROL_PORT" --admin-listen "$address:$ADMIN_PORT" \
        --passive-port-min "${PASSIVE_PORTS%-*}" --passive-port-max "${PASSIVE_PORTS#*-}" \
        --passive-block-ports "$(block_ports)" \
        --external-address 127.0.0.1 --trusted-balancers 127.0.0.1/32 \
        --root "$STORAGE" --create-homes true --drain-timeout "${DRAIN_TIMEOUT}s" \
        --tls-certificates "$state/tls/localhost.pem" --tls-keys "$state/tls/localhost.key" \
        --implicit-tls-port "$IMPLICIT_PORT" \
        --redis-url "$REDIS" --authd-urls "http://$AUTHD" --authd-token-file "$state/node-token"
      ;;
  esac
}

# wait_until WHAT PART COMMAND…: waits until the command succeeds. Ends if the part ends, or after 30 s.
wait_until() {
  local what=$1 part=$2 deadline=$((SECONDS + 30))
  shift 2
  until "$@"; do
    if ! kill -0 "${pids[$part]}" 2>/dev/null; then
      tail -n 5 "$state/$part.log" >&2
      fail "$part ended at once; the last lines of $state/$part.log are above"
    fi
    ((SECONDS < deadline)) || fail "waited 30 s for $what; the logs are in $state"
    sleep 0.05
  done
}

# address_of PART: prints the part's address for the table.
address_of() {
  case $1 in
    redis) echo "$REDIS" ;;
    authd) echo "$AUTHD" ;;
    balancer) echo "127.0.0.1:$CONTROL_PORT" ;;
    relay) echo "127.0.0.1" ;;
    *) echo "${NODE_ADDRESSES[$(position "$1")]}:$CONTROL_PORT" ;;
  esac
}

# blocks NODE: prints the passive ports that the node owns now, as authd knows them.
blocks() {
  http GET "$AUTHD" /v1/nodes "Authorization: Bearer $(<"$state/admin-token")" | tr '{' '\n' |
    sed -nE "/\"name\":\"$1\"/s/.*\"passive_ports\":\[(\[[^]]*\](,\[[^]]*\])*)\].*/\1/p" |
    sed 's/\],\[/ /g; s/[][]//g; s/,/-/g'
}

# row PART PROCESS STATE: prints a row of the table.
row() {
  local ports=
  case $1 in
    relay) ports="passive ports $PASSIVE_PORTS" ;;
    redis | authd | balancer) ;;
    *) [[ $2 == - ]] || ports=$(blocks "$1") ports=${ports:+passive ports $ports} ;;
  esac
  printf '  %-10s %-18s %-9s %-13s %s\n' "$1" "$(address_of "$1")" "$2" "$3" "$ports"
}

# make_certificates: creates a certificate authority for this cluster, and its certificate for localhost. Both
# are kept from one `up` to the next, so that a client has to trust the authority only once. They have all
# extensions that RFC 5280 requires: OpenSSL with -x509_strict and Python 3.13 refuse certificates without.
make_certificates() (
  umask 077
  mkdir -p "$state/tls"
  cd "$state/tls"
  # Keep a certificate that is valid for at least another day.
  openssl x509 -checkend 86400 -noout -in localhost.pem >/dev/null 2>&1 &&
    openssl verify -x509_strict -CAfile ca.pem localhost.pem >/dev/null 2>&1 && exit
  cat >openssl.cnf <<'END'
[req]
prompt = no
distinguished_name = authority_name
x509_extensions = authority
[authority_name]
CN = Distributed FTP dev
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1
END
  {
    openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 \
      -keyout ca.key -out ca.pem &&
      openssl req -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
        -subj '/CN=localhost' -keyout localhost.key -out localhost.csr &&
      openssl x509 -req -in localhost.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
        -extfile openssl.cnf -extensions server -out localhost.pem
  } 2>openssl.log || { cat openssl.log >&2; exit 1; }
)

# fill TEMPLATE NAME=VALUE…: prints a file of nginx/ with its placeholders replaced.
fill() {
  local text pair
  text=$(<"nginx/$1")
  shift
  for pair; do
    # Quoted, because an unquoted & would stand for the placeholder.
    text=${text//"@${pair%%=*}@"/"${pair#*=}"}
  done
  printf '%s\n' "$text"
}

# control_server PORT: prints nginx's configuration for the control connections at a port.
control_server() {
  local i address listen='' servers=''
  for address in "${CLIENT_ADDRESSES[@]}"; do
    listen+=$(fill listen.conf address="$address" ports="$1")$'\n'
  done
  for ((i = 0; i < members; i++)); do
    servers+=$(fill upstream-server.conf node="${NODE_ADDRESSES[i]}" port="$1")$'\n'
  done
  fill control.conf port="$1" control_timeout=4h control_listen="$listen" upstream_servers="$servers"
}

# balancer_configuration: prints nginx's configuration, according to nginx/README.md: the control connections,
# to the started nodes. ftp-relay carries the data connections.
balancer_configuration() {
  local stream connections
  stream=$(fill stream.conf access_log="$state/balancer.log" control="$(control_server "$CONTROL_PORT")" \
    implicit_control="$(control_server "$IMPLICIT_PORT")" data_servers=)
  # For 1,000 control connections at once.
  connections=$((2 * 1000 + 2 * ${#CLIENT_ADDRESSES[@]} + 64))
  fill nginx.conf load_module="$(load_stream_module)" pid="$state/nginx.pid" error_log=stderr \
    worker_processes=auto \
    worker_connections=$connections worker_rlimit_nofile=$((2 * connections)) \
    worker_shutdown_timeout=5m stream="$stream"
}

# find_state: sets `state`, the folder for logs, and `daemons`, the folder of the programs.
find_state() {
  daemons=${DEV_DAEMONS-}
  if [[ $daemons ]]; then
    state=${DEV_STATE:?DEV_DAEMONS needs it}
  else
    need_rust
    state=${DEV_STATE:-$(target_directory)/dev}
  fi
}

up() {
  local part group from to pid
  if [[ $PASSIVE_PORTS ]]; then
    [[ $PASSIVE_PORTS =~ ^([0-9]+)-([0-9]+)$ ]] || fail "DEV_PASSIVE_PORTS=$PASSIVE_PORTS: expected FROM-TO"
    from=${BASH_REMATCH[1]} to=${BASH_REMATCH[2]}
    ((to - from + 1 >= ${#NODES[@]} && to < 65536)) ||
      fail "DEV_PASSIVE_PORTS=$PASSIVE_PORTS: expected at least ${#NODES[@]} ports, one a node"
  fi
  [[ $DRAIN_TIMEOUT =~ ^[1-9][0-9]{0,4}$ ]] ||
    fail "DEV_DRAIN_TIMEOUT=$DRAIN_TIMEOUT: expected seconds, 1 to 99999"
  need_parts openssl=openssl
  find_state
  mkdir -p "$state/parts" || fail "cannot make the folder for logs, $state (DEV_STATE)"
  mkdir -p "$STORAGE" || fail "cannot make the folder for files, $STORAGE (DEV_STORAGE)"
  state=$(realpath "$state")
  exec 9>>"$state/lock"
  if ! flock -n 9; then
    say_where "it is up already, as process $(<"$state/lock")"
    exit 1
  fi
  echo $$ >"$state/lock"
  rm -f "$state"/parts/* "$state"/cluster "$state"/requests "$state"/answer.*

  # No process of the cluster is left when this one ends.
  trap 'end_cluster' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  end_leftovers
  rm -f "$state"/*.log
  has_ipv6 && CLIENT_ADDRESSES+=('[::1]')
  choose_ports
  if [[ ! $daemons ]]; then
    cargo build --package ftpd --package authd --bins || fail "the build failed"
    daemons=$(target_directory)/debug
  fi
  make_certificates || fail "openssl could not make a certificate"
  (umask 077 && for part in node admin; do head -c 24 /dev/urandom | base64 >"$state/$part-token"; done)
  # Opened for reading and writing, so that it never reports an end of file.
  mkfifo -m 600 "$state/requests"
  exec 7<>"$state/requests"

  members=$FIRST_NODES
  printf '  %-10s %-18s %s\n' part address process
  # Redis and authd start before the nodes, which must answer a login as soon as they listen. The nodes start
  # at the same time, and share the passive ports. nginx starts last, when there are nodes.
  for group in redis authd "${NODES[*]:0:members}" relay balancer; do
    for part in $group; do start_part "$part"; done
    for part in $group; do
      case $part in
        balancer) wait_until "a login through the balancer" balancer can_log_in ;;
        *) wait_until "$part to be ready" "$part" is_ready "$part" ;;
      esac
    done
    for part in $group; do row "$part" "${pids[$part]}" ready; done
  done
  # -g: also global when a function sources the file.
  declare -p "${KEPT[@]}" | sed 's/^declare /declare -g /' >"$state/cluster"
  # The first signal lets transfers finish, a second one does not.
  trap 'ending=1' INT TERM HUP
  describe
  for part in redis authd "${NODES[@]:0:members}" relay balancer; do follow "$part"; done
  serve_requests
}

describe() {
  cat <<END

  ftp://demo:anything@127.0.0.1:$CONTROL_PORT/     in the clear, or with AUTH TLS
  ftps://demo:anything@127.0.0.1:$IMPLICIT_PORT/    TLS from the first byte

The page for operators: http://$AUTHD/   log in as admin with the token $(<"$state/admin-token")

Users demo, admin and test, any password. Files are in $STORAGE, logs in $state.
Data connections use ports $PASSIVE_PORTS. For example:
  curl -T README.md ftp://demo:x@127.0.0.1:$CONTROL_PORT/
  curl --ssl-reqd --cacert $state/tls/ca.pem -T README.md ftp://demo:x@localhost:$CONTROL_PORT/
  lftp -u demo,x -p $CONTROL_PORT localhost -e 'set ssl:ca-file $state/tls/ca.pem; ls; bye'
  curl -H "Authorization: Bearer \$(cat $state/admin-token)" http://$AUTHD/v1/sessions
  curl http://${NODE_ADDRESSES[0]}:$ADMIN_PORT/metrics
In a second terminal: $me stop|start|kill|drain ftp2, $me add, $me status. Ctrl-C ends all of it.

END
}

# say_where WHAT: prints WHAT, and where clients, files and logs of the running cluster are.
say_where() {
  say "$1"
  if [[ -e $state/cluster ]]; then
    (
      # shellcheck disable=SC1091 # written by `up`
      . "$state/cluster"
      printf '  clients: %s  %s\n' "ftp://demo:anything@127.0.0.1:$CONTROL_PORT/" \
        "ftps://demo:anything@127.0.0.1:$IMPLICIT_PORT/"
      echo "  page: http://$AUTHD/  as admin with the token in $state/admin-token"
      echo "  files: $STORAGE"
    ) >&2
  fi
  echo "  logs: $state" >&2
  echo "  $me status shows its parts; $me down, or Ctrl-C where it runs, ends it" >&2
}

# --- serving requests, and the end ----------------------------------------------------------------

# serve_requests: answers the other commands until a signal ends the cluster. A part that ends does not end
# others.
serve_requests() {
  local begun='' line word part answer
  while [[ ! $ending ]]; do
    if IFS= read -rt 0.2 -u 7 line; then
      read -r word part answer <<<"$begun$line"
      begun=
      # If the asking process is gone, the pipe is gone, too: writing to it would block this process.
      [[ -p $answer ]] && answer_request "$word" "$part" 1<>"$answer"
    else
      # On a busy machine the time may end in the middle of a line.
      begun+=$line
    fi
    reap
  done
}

# answer_request WORD PART: prints one line, "ok …" or "error …". The asking process waits for the outcome.
answer_request() {
  local pid=${pids[$2]-}
  case $1 in
    start)
      if [[ $pid ]]; then echo "error $2 runs already, as process $pid"; return; fi
      start_part "$2"
      echo ok
      ;;
    stop | kill)
      if [[ ! $pid ]]; then echo "error $2 does not run"; return; fi
      if [[ $1 == stop ]]; then send TERM "$2"; else asked_to_end[$2]=1 && kill_group "$pid"; fi
      echo ok
      ;;
    add)
      if ((members == ${#NODES[@]})); then
        echo "error there are $members nodes already, the most that this demonstration starts"
        return
      fi
      find_added_busy
      if ((${#busy[@]})); then echo "error $(refuse_busy 2>&1)"; return; fi
      start_part "${NODES[members]}"
      follow "${NODES[members]}"
      echo "ok ${NODES[members]}"
      members=$((members + 1))
      ;;
    reload)
      # If nginx refuses the new configuration, it keeps the old one.
      balancer_configuration >"$state/nginx.conf"
      [[ ! ${pids[balancer]-} ]] || kill -HUP "${pids[balancer]}"
      echo ok
      ;;
    end) ending=1 && echo ok ;;
  esac
}

# find_added_busy: sets `busy` to the ports of the next node that are in use.
find_added_busy() {
  local address=${NODE_ADDRESSES[members]} ports
  mapfile -t ports < <(node_ports "$address")
  find_busy "${ports[@]}" "$address:$PASSIVE_PORTS"
}

# end_cluster: ends the nodes first, so that transfers can finish while balancer, authd and Redis still run.
end_cluster() {
  local part nodes=() others=() running
  trap - EXIT
  trap 'hurry=1' INT TERM HUP
  ending=1
  rm -f "$state/cluster"
  for part in "${NODES[@]}"; do [[ ! ${pids[$part]-} ]] || nodes+=("$part"); done
  for part in balancer relay authd redis; do [[ ! ${pids[$part]-} ]] || others+=("$part"); done
  if ((${#nodes[@]})); then
    running=$(transfers)
    if ((running)); then
      say "ending. Transfers that run: $running; they have $DRAIN_TIMEOUT s. Ctrl-C again cuts them"
    else
      say "ending"
    fi
    for part in "${nodes[@]}"; do send TERM "$part"; done
    wait_for_end $((DRAIN_TIMEOUT + 10)) "${nodes[@]}"
  fi
  for part in "${others[@]}"; do send TERM "$part"; done
  wait_for_end 10 "${others[@]}"
  if ((${#followers[@]})); then
    # By then they have printed the last lines.
    sleep 0.1
    kill "${followers[@]}" 2>/dev/null || true
  fi
  wait 2>/dev/null || true
  rm -f "$state"/parts/* "$state/requests"
  ((${#nodes[@]} + ${#others[@]} == 0)) || say "all parts have ended; logs are in $state, files in $STORAGE"
}

# --- commands for a second terminal --------------------------------------------------------------

find_cluster() {
  find_state
  if [[ ! -e $state/lock ]] || flock -n "$state/lock" true; then fail "it is not up; $me up starts it"; fi
  [[ -e $state/cluster ]] || fail "it is about to start, or to end; $me status shows it once it is up"
  state=$(realpath "$state")
  # shellcheck disable=SC1091 # written by `up`
  . "$state/cluster"
}

# need_part NAME: ends if the cluster has no such part.
need_part() {
  [[ $1 =~ ^[a-z0-9]+$ && -e $state/parts/$1 ]] ||
    fail "there is no part \"$1\". The parts are: $(basename -a "$state"/parts/* | xargs)"
}

runs() { [[ -s $state/parts/$1 ]]; }

# ask WORD [PART]: sets `answer` to what `up` says.
ask() {
  local reply=$state/answer.$$ line
  mkfifo -m 600 "$reply"
  exec 8<>"$reply"
  echo "$1 ${2:--} $reply" >"$state/requests"
  read -rt 30 -u 8 line || line="error no answer; is $me up still running?"
  exec 8>&-
  rm -f "$reply"
  [[ $line == ok* ]] || fail "${line#error }"
  answer=${line#ok} answer=${answer# }
}

# until_ended PART SECONDS: waits until the part has ended; fails after that time.
until_ended() {
  local deadline=$((SECONDS + $2))
  while runs "$1"; do
    ((SECONDS < deadline)) || fail "$1 has not ended within $2 s; its log is $state/$1.log"
    sleep 0.05
  done
}

# until_ready PART: waits until the part is ready; fails if it ends, or after 30 s.
until_ready() {
  local deadline=$((SECONDS + 30))
  until is_ready "$1"; do
    if ! runs "$1"; then
      tail -n 5 "$state/$1.log" >&2
      fail "$1 ended at once; the last lines of $state/$1.log are above"
    fi
    ((SECONDS < deadline)) || fail "$1 is not ready after 30 s; its log is $state/$1.log"
    sleep 0.05
  done
}

stop_part() {
  ask stop "$1"
  until_ended "$1" $((DRAIN_TIMEOUT + 20))
  say "$1 has ended; $me start $1 starts it again"
}

start_again() {
  ask start "$1"
  until_ready "$1"
  say "$1 is ready"
}

kill_part() {
  ask kill "$1"
  until_ended "$1" 10
  say "$1 was killed, as by a crash; $me start $1 starts it again"
}

# drain_node NODE: drains the node through authd, as an administrator does.
drain_node() {
  local status
  position "$1" >/dev/null || fail "only nodes drain: ${NODES[*]}"
  runs "$1" || fail "$1 does not run"
  status=$(http POST "$AUTHD" "/v1/nodes/$1/drain" "Authorization: Bearer $(<"$state/admin-token")" |
    head -n 1 || true)
  [[ $status == *" 202 "* ]] || fail "authd refused the drain: ${status:-no answer}"
  say "$1 accepts no new sessions; transfers may finish within $DRAIN_TIMEOUT s"
  until_ended "$1" $((DRAIN_TIMEOUT + 20))
  say "$1 has drained and ended; $me start $1 starts it again"
}

add_node() {
  ask add
  until_ready "$answer"
  local node=$answer
  # Only now: earlier, nginx would send clients to a node that does not serve yet.
  ask reload
  say "$node is ready, and the balancer sends clients to it. No other part was restarted"
}

show_status() {
  local part process condition
  printf '  %-10s %-18s %-9s %s\n' part address process state
  for part in redis authd "${NODES[@]}" relay balancer; do
    [[ -e $state/parts/$part ]] || continue
    process=$(<"$state/parts/$part") condition='not running'
    if [[ $process ]]; then
      condition='not ready'
      if is_ready "$part"; then
        condition=ready
      elif position "$part" >/dev/null && [[ $(http GET "$(admin "$part")" /readyz) == *draining* ]]; then
        condition=draining
      fi
    fi
    row "$part" "${process:--}" "$condition"
  done
}

end_from_outside() {
  local process
  process=$(<"$state/lock")
  ask end
  until flock -n "$state/lock" true; do sleep 0.1; done
  say "process $process has ended"
}
