# shellcheck shell=bash
# The parts of the demo cluster as processes: started, watched and ended by `./dev up`.

# The process of each running part, and the parts that were asked to end.
declare -A pids=() asked_to_end=()
followers=()

# start PART COMMAND…: starts the part in the background, with its own log. Each part has a session and a
# process group of its own, so that Ctrl-C reaches only `./dev up`, and a part ends with all its children. If
# `./dev up` is killed, the parts get SIGTERM.
start() {
  local part=$1
  shift
  setpriv --pdeathsig TERM -- setsid -- "$@" >>"$state/$part.log" 2>&1 7>&- 9>&- &
  pids[$part]=$!
  unset "asked_to_end[$part]"
  echo $! >"$state/parts/$part"
}

# send SIGNAL PART: sends the signal, and notes that the part was asked to end.
send() {
  asked_to_end[$2]=1
  kill "-$1" "${pids[$2]}" 2>/dev/null || true
}

# kill_group PROCESS: kills the part and all its children.
kill_group() { kill -KILL -- "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || true; }

# reap: notes the parts that have ended, and prints why.
reap() {
  local part pid status
  for part in "${!pids[@]}"; do
    pid=${pids[$part]}
    kill -0 "$pid" 2>/dev/null && continue
    status=0
    wait "$pid" 2>/dev/null || status=$?
    # A killed nginx leaves workers that hold its ports. (The kernel does not reuse its process id while its
    # group has members.)
    kill -KILL -- "-$pid" 2>/dev/null || true
    unset "pids[$part]"
    : >"$state/parts/$part"
    report_end "$part" "$status"
  done
}

report_end() {
  local how
  if [[ $ending ]]; then
    return
  elif [[ $2 == 0 || ${asked_to_end[$1]-} ]]; then
    say "$1 has ended. $me start $1 starts it again"
  else
    how="with status $2"
    (($2 > 128)) && how="by signal $(($2 - 128)), SIG$(kill -l "$(($2 - 128))")"
    say "$1 ended $how. The others go on; $me start $1 starts it again. Its log is $state/$1.log"
  fi
}

# wait_for_end SECONDS PART…: waits until the parts have ended, and kills those that have not after that time.
wait_for_end() {
  local deadline=$((SECONDS + $1)) part left
  shift
  while :; do
    reap
    left=()
    for part; do [[ ! ${pids[$part]-} ]] || left+=("$part"); done
    ((${#left[@]})) || return 0
    if ((SECONDS >= deadline)); then
      for part in "${left[@]}"; do
        say "$part did not end in time and is killed"
        kill_group "${pids[$part]}"
      done
      deadline=$((SECONDS + 5))
    fi
    if [[ $hurry ]]; then
      # A second SIGTERM makes a node cut its transfers. Repeated, because the kernel merges two signals that
      # arrive together.
      for part in "${left[@]}"; do send TERM "$part"; done
    fi
    sleep 0.05
  done
}

# leftovers: prints "PROCESS PART" for each process whose standard error is one of the logs here.
leftovers() {
  local process log
  for process in /proc/[0-9]*; do
    for log in "$state"/*.log; do
      [[ $process/fd/2 -ef $log ]] && echo "${process#/proc/} $(basename "$log" .log)"
    done
  done
  return 0
}

# end_leftovers: kills the processes of an earlier `./dev up` that was itself killed, and waits until they
# end.
end_leftovers() {
  local process part ended=() deadline=$((SECONDS + 10)) found
  while found=$(leftovers) && [[ $found ]] && ((SECONDS < deadline)); do
    while read -r process part; do
      kill -KILL "$process" 2>/dev/null || true
      [[ " ${ended[*]} " == *" $part "* ]] || ended+=("$part")
    done <<<"$found"
    sleep 0.05
  done
  ((${#ended[@]} == 0)) || say "ended processes of an earlier run: ${ended[*]}"
}

# follow PART: shows new lines of the part's log, each with the part's name.
follow() {
  local label colours=(31 32 33 34 35 36)
  printf -v label '%-9s' "$1"
  [[ -t 1 ]] && label=$'\e['"${colours[${#followers[@]} % 6]}m$label"$'\e[0m'
  setpriv --pdeathsig TERM -- setsid -- tail -n 0 -f "$state/$1.log" 7>&- 9>&- \
    > >(exec setsid -- sed -u "s/^/$label/" 7>&- 9>&-) &
  followers+=($!)
}
