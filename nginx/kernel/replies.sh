#!/bin/sh
# The node's part of the kernel data path: packets from its slice of the passive ports go through the
# balancer, which restores the address that the client connected to. All other packets keep their routes.
#
#   replies.sh add ADDRESS FROM-TO GATEWAY [BALANCER...]   adds the rules; they may exist
#   replies.sh keep ADDRESS FROM-TO GATEWAY [BALANCER...]  adds them again whenever they vanish
#   replies.sh remove ADDRESS
#
# ADDRESS is the node's address, FROM-TO its slice, GATEWAY the balancer, in the same network. Replies to
# nginx on a BALANCER keep their normal route. For each IP version there is one rule and one routing table:
number=5021

set -eu
action=$1 address=$2
case $address in
  *:*) family=-6 ;;
  *) family=-4 ;;
esac

# add_rule FROM-TO
add_rule() {
  # The kernel reports a rule that exists already.
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
    # Without a route through the balancer, drop the packets: a client that got a reply from the node's own
    # address would reset the connection.
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
    # An interface that goes down loses its routes.
    while sleep 5; do add "$@" || :; done
    ;;
  remove) remove ;;
  *)
    echo "replies.sh: what is \"$action\"?" >&2
    exit 2
    ;;
esac
