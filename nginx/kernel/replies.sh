#!/bin/sh
# The node's part of the kernel data path: packets from the passive ports go through the balancer, which
# restores the address that the client connected to. All other packets keep their routes.
#
#   replies.sh add ADDRESS FROM-TO GATEWAY [PEER...]   adds the rules; they may exist
#   replies.sh keep ADDRESS FROM-TO GATEWAY [PEER...]  adds them again whenever they vanish
#   replies.sh remove ADDRESS
#
# ADDRESS is the node's address, FROM-TO the ports on which it listens for data connections, GATEWAY the
# balancer, in the same network. Replies to a PEER keep their normal route: the peers are the addresses of the
# balancers and of the other nodes, which carry data connections to this node. A PEER with a slash is a file
# of such addresses, one a line, which is read again each time. For each IP version there is one rule and one
# routing table:
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

# peers PEER...: prints the addresses of this IP version.
peers() {
  for peer; do
    case $peer in
      */*) cat "$peer" ;;
      *) echo "$peer" ;;
    esac
  done | if [ $family = -6 ]; then grep : || :; else grep -v : || :; fi
}

# add FROM-TO GATEWAY [PEER...]
add() {
  ports=$1 gateway=$2
  shift 2
  routes=$(ip $family route show table $number 2>/dev/null || :)
  for peer in $(peers "$@"); do
    case $routes in
      *"throw $peer "*) ;;
      *) ip $family route replace table $number throw "$peer" || return ;;
    esac
  done
  if [ -z "$(ip $family route show table $number default via "$gateway" 2>/dev/null)" ]; then
    # Without a route through the balancer, drop the packets: a client that got a reply from the node's own
    # address would reset the connection.
    ip $family route replace table $number unreachable default metric 4000000000 || return
    ip $family route replace table $number default via "$gateway" || return
  fi
  add_rule "$ports"
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
