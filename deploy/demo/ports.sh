# shellcheck shell=bash
# Ports of the demo cluster: which are free, which process holds the others, and which variable changes them.

# load_stream_module: prints the line of nginx.conf that loads the stream module, if `nginx -V` shows that it
# is not built in. The existence of the file is no proof: it may belong to another nginx, and this one would
# refuse it.
load_stream_module() {
  local build folder prefix
  build=$(nginx -V 2>&1)
  [[ " $build " =~ [[:space:]]--with-stream=dynamic[[:space:]] ]] || return 0
  prefix=/usr/local/nginx
  [[ $build =~ [[:space:]]--prefix=([^[:space:]]+) ]] && prefix=${BASH_REMATCH[1]}
  folder=$prefix/modules
  [[ $build =~ [[:space:]]--modules-path=([^[:space:]]+) ]] && folder=${BASH_REMATCH[1]}
  echo "load_module $folder/ngx_stream_module.so;"
}

has_ipv6() { [[ -e /proc/net/if_inet6 ]] && grep -q '^0\{31\}1 ' /proc/net/if_inet6; }

# find_busy ADDRESS:PORT[-PORT]…: sets `busy` to the "ADDRESS PORT" pairs on which no part could listen now.
# It lets nginx bind them all. Every part binds as nginx does (SO_REUSEADDR), so this fails where a part would
# fail: also on a port that an outgoing or a closed connection (TIME_WAIT) holds.
find_busy() {
  local listen='' entry probe log=$state/probe.log deadline=$((SECONDS + 20))
  for entry; do listen+="listen $entry; "; done
  cat >"$state/probe.conf" <<END
$(load_stream_module)
daemon off;
master_process off;
pid $state/probe.pid;
error_log stderr notice;
events { worker_connections 4096; }
stream { server { $listen return ''; } }
END
  # The log too: the loop below may read it before the new process has emptied it.
  rm -f "$state/probe.pid" "$log"
  nginx -p "$state" -c probe.conf -e stderr >"$log" 2>&1 7>&- 9>&- &
  probe=$!
  # nginx writes its process id when it has all ports. Otherwise it logs the busy ones and waits.
  until [[ -s $state/probe.pid ]] || grep -sq 'try again to bind' "$log" || ! kill -0 "$probe" 2>/dev/null; do
    ((SECONDS < deadline)) || break
    sleep 0.01
  done
  kill -KILL "$probe" 2>/dev/null || true
  wait "$probe" 2>/dev/null || true
  mapfile -t busy < <(sed -nE 's/.*bind\(\) to (.*):([0-9]+) failed .*/\1 \2/p' "$log" | sort -u)
  if ((${#busy[@]} == 0)) && [[ ! -s $state/probe.pid ]]; then
    tail -n 5 "$log" >&2
    fail "nginx could not try the ports; its log is above"
  fi
}

# holder PORT: prints what holds the port, as far as this user may see it.
holder() {
  local wanted line local_end state_code socket descriptor process what=
  printf -v wanted '%04X' "$1"
  while read -r _ local_end _ state_code _ _ _ _ _ socket _; do
    [[ $local_end == *:$wanted ]] || continue
    case $state_code in
      06) what=${what:-"a closed connection (TIME_WAIT) holds it for up to a minute"} ; continue ;;
      0A) line=listener ;;
      *) line=connection ;;
    esac
    descriptor=$(find /proc/[0-9]*/fd -lname "socket:\\[$socket\\]" -print -quit 2>/dev/null || true)
    process=${descriptor#/proc/} process=${process%%/*}
    if [[ $process ]]; then
      what="$(<"/proc/$process/comm"), process $process, has a $line there"
    else
      what="another user's process has a $line there"
    fi
    break
  done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  echo "${what:-a process without a connection holds it}"
}

# variable_of PORT: prints the variable that sets this port.
variable_of() {
  case $1 in
    "$CONTROL_PORT") echo DEV_CONTROL_PORT ;;
    "$IMPLICIT_PORT") echo DEV_IMPLICIT_PORT ;;
    "$ADMIN_PORT") echo DEV_ADMIN_PORT ;;
    "$AUTHD_PORT") echo DEV_AUTHD_PORT ;;
    "$REDIS_PORT") echo DEV_REDIS_PORT ;;
    *) echo DEV_PASSIVE_PORTS ;;
  esac
}

# refuse_busy: if `busy` is not empty, fails with the port, its holder and the remedy.
refuse_busy() {
  local address port
  ((${#busy[@]})) || return 0
  read -r address port <<<"${busy[0]}"
  if grep -q "bind() to $address:$port failed (13:" "$state/probe.log"; then
    fail "cannot listen on port $port: ports below 1024 need root. Set $(variable_of "$port") to another one"
  fi
  fail "port $port is in use on $address: $(holder "$port"). $(remedy "$port")"
}

remedy() {
  local variable
  variable=$(variable_of "$1")
  if [[ $variable == DEV_PASSIVE_PORTS ]]; then
    echo "DEV_PASSIVE_PORTS=FROM-TO sets other ports; without it, ./dev up finds free ones"
  else
    echo "$variable=PORT sets another one"
  fi
}

# Arguments for find_busy: the ports of Redis, authd and the relay's health, of nginx, and of a node without
# its passive ports.
backend_ports() { printf '%s\n' "$REDIS" "$AUTHD" "127.0.0.1:$ADMIN_PORT"; }
balancer_ports() {
  local address
  for address in "${CLIENT_ADDRESSES[@]}"; do
    printf '%s\n' "$address:$CONTROL_PORT" "$address:$IMPLICIT_PORT"
  done
}
node_ports() { printf '%s\n' "$1:$CONTROL_PORT" "$1:$IMPLICIT_PORT" "$1:$ADMIN_PORT"; }

# passive_ports NODES: the range on the relay's addresses, and on those of that many nodes.
passive_ports() {
  printf '%s\n' "${CLIENT_ADDRESSES[@]/%/:$PASSIVE_PORTS}" "${NODE_ADDRESSES[@]:0:$1}" |
    sed "/:/!s/$/:$PASSIVE_PORTS/"
}

# choose_ports: checks the fixed ports, and finds a free passive range if DEV_PASSIVE_PORTS is not set.
choose_ports() {
  local address entries ranges low high first count=$((10 * ${#NODES[@]}))
  mapfile -t entries < <(
    backend_ports
    balancer_ports
    for address in "${NODE_ADDRESSES[@]:0:FIRST_NODES}"; do node_ports "$address"; done
    [[ ! $PASSIVE_PORTS ]] || passive_ports "$FIRST_NODES"
  )
  find_busy "${entries[@]}"
  refuse_busy
  [[ ! $PASSIVE_PORTS ]] || return 0
  # The kernel uses the ports from `low` to `high` for outgoing connections, so try others first.
  read -r low high </proc/sys/net/ipv4/ip_local_port_range
  mapfile -t ranges < <(
    seq 12000 100 $((low - count))
    seq $((high + 1)) 100 $((65536 - count))
    seq 50000 100 $((65536 - count))
  )
  for first in "${ranges[@]}"; do
    PASSIVE_PORTS=$first-$((first + count - 1))
    mapfile -t entries < <(passive_ports ${#NODES[@]})
    find_busy "${entries[@]}"
    ((${#busy[@]})) || return 0
  done
  refuse_busy
}

# block_ports: prints the number of ports of a block: five, or fewer if each node would not get a block.
block_ports() {
  local from=${PASSIVE_PORTS%-*} to=${PASSIVE_PORTS#*-} ports
  ports=$(((to - from + 1) / ${#NODES[@]}))
  echo $((ports < 5 ? ports : 5))
}
