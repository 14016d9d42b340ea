#!/bin/sh
# The node's part in the kernel data path: what it sends from its slice of the passive ports goes
# through the balancer, which gives it back the address that the client connected to. Everything else
# takes the ways that it always took.
#
#   replies.sh add ADDRESS FROM-TO GATEWAY [BALANCER...]   once; it may be there already
#   replies.sh keep ADDRESS FROM-TO GATEWAY [BALANCER...]  again whenever something took it away
#   replies.sh remove ADDRESS
#
# ADDRESS is the node's, FROM-TO its slice, GATEWAY the balancer, in the same network. nginx on a
# BALANCER gets its answers as ever. For each family there is one rule and one table of routes:
number=5021

set -eu
action=$1 address=$2
case $address in
  *:*) family=-6 ;;
  *) family=-4 ;;
esac

# add_rule FROM-TO
add_rule() {
  # Of a rule that is there the kernel says so.
  said=$(ip $family rule add pref $number from "$address" ipproto tcp sport "$1" lookup $number 2>&1) ||
    case $said in
      *'File exists'*) ;;
      *)
        echo "replies.sh: ip rule: $said" >&2
        return 1
        ;;
    esac
}

# add FROM-TO GATEWAY [BALANCER...]
add() {
  slice=$1 gateway=$2
  shift 2
  if [ -z "$(ip $family route show table $number default via "$gateway" 2>/dev/null)" ]; then
    # While there is no way through the balancer there is none: a client that got an answer from the
    # node's own address would reset the connection.
    ip $family route replace table $number unreachable default metric 4000000000 || return
    for balancer; do
      ip $family route replace table $number throw "$balancer" || return
    done
    ip $family route replace table $number default via "$gateway" || return
  fi
  add_rule "$slice"
}

remove() {
  while ip $family rule del pref $number 2>/dev/null; do :; done
  ip $family route flush table $number 2>/dev/null || :
}

shift 2
case $action in
  add) add "$@" ;;
  keep)
    # Interfaces that go down take their routes with them.
    while sleep 5; do add "$@" || :; done
    ;;
  remove) remove ;;
  *)
    echo "replies.sh: what is \"$action\"?" >&2
    exit 2
    ;;
esac
