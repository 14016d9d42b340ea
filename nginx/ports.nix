# The slice of each node: the same formula as in README.md and common/src/node.rs.
#
# from, to: the cluster's range. position: the node's index in the list of nodes, from 0. nodes: the number
# of nodes. A range with fewer ports than nodes gives empty slices.
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
