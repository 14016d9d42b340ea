# Which passive ports belong to which node: the formula of README.md and of common/src/node.rs.
#
# from, to: the cluster's range. position: a node's place in the list of nodes, from 0.
# nodes: how many there are. A range with fewer ports than nodes gives slices that are empty.
{
  from,
  to,
}:
position: nodes:
let
  count = to - from + 1;
  edge = i: from + i * count / nodes;
in
{
  from = edge position;
  to = edge (position + 1) - 1;
}
