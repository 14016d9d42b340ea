// Cluster: which node owns which passive ports, versions, certificates, Redis, authd, clocks.

import { h, pill, show, svg, table } from "./dom.js";
import { follow } from "./feed.js";
import { count, duration, full, left } from "./format.js";
import { STATES } from "./overview.js";

const KINDS = ["first", "second", "third", "fourth", "fifth", "sixth"];

const ports = (node) => node.passive_ports.reduce((sum, [from, to]) => sum + to - from + 1, 0);

/** The ports as text, neighbouring blocks together. */
function ranges(node) {
  const joined = [];
  for (const [from, to] of [...node.passive_ports].sort((a, b) => a[0] - b[0])) {
    const last = joined[joined.length - 1];
    if (last && last[1] + 1 === from) last[1] = to;
    else joined.push([from, to]);
  }
  return joined.map(([from, to]) => (from === to ? from : `${from}–${to}`)).join(", ");
}

const COLUMNS = [
  { title: "Node", key: (n) => n.name, cell: (n) => h("b", {}, n.name), sort: (n) => n.name },
  {
    title: "State",
    key: (n) => n.state,
    cell: (n) => pill(n.state, STATES[n.state] ?? "bad"),
    sort: (n) => n.state,
  },
  { title: "Version", key: (n) => n.version || "–", sort: (n) => n.version },
  { title: "Address", kind: "code", key: (n) => n.address ?? "–", sort: (n) => n.address },
  { title: "Started", key: (n) => full(n.since), sort: (n) => n.since },
  { title: "Passive ports", kind: "code ports", key: (n) => ranges(n) || "none", sort: ports, first: true },
  {
    title: "Certificate until",
    key: (n) => expiry(n),
    sort: (n) => n.activity?.certificate_expiry ?? Infinity,
  },
  {
    title: "Redis",
    kind: "number",
    key: (n) => duration(n.activity?.redis_seconds),
    sort: (n) => n.activity?.redis_seconds ?? 0,
  },
  {
    title: "authd",
    kind: "number",
    key: (n) => duration(n.activity?.authd_seconds),
    sort: (n) => n.activity?.authd_seconds ?? 0,
  },
];

function expiry(node) {
  const at = node.activity?.certificate_expiry;
  return at ? full(new Date(at * 1000)).slice(0, 10) : "no TLS";
}

export function cluster() {
  const facts = h("dl", { class: "facts" });
  const map = h("section", { class: "card" });
  const notes = h("ul", { class: "notes" });
  const nodes = table({
    caption: "Nodes",
    columns: COLUMNS,
    id: (node) => node.name,
    empty: "No node is in the registry.",
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Cluster"),
    facts,
    h("h2", {}, "Who owns which passive ports"),
    map,
    h("h2", {}, "Nodes"),
    nodes.element,
    notes,
    h("h2", {}, "API"),
    h(
      "p",
      {},
      "Everything on this page is also in the API: ",
      h("a", { href: "/openapi.json" }, "openapi.json"),
      ", ",
      h("a", { href: "/readyz" }, "readyz"),
      ", ",
      h("a", { href: "/metrics" }, "metrics"),
      ".",
    ),
  );
  const end = follow("status", (status, error) => {
    if (!status) {
      show(facts, error?.message ?? "", () => h("p", { class: "empty" }, error?.message));
      return;
    }
    const all = [...status.nodes].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    const certificate = status.certificate_expiry;
    const rows = [
      ["authd", status.version],
      ["Redis", status.redis_seconds === null ? "away" : `answers in ${duration(status.redis_seconds)}`],
      [
        "First certificate to expire",
        certificate ? `in ${duration(Math.max(0, left(certificate)))}` : "no TLS",
      ],
      [
        "Passive ports owned",
        count(
          all.reduce((sum, node) => sum + ports(node), 0),
          "port",
        ),
      ],
      ...extra(status),
    ];
    show(facts, rows, () => rows.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
    nodes.update(all);
    show(
      map,
      all.map((node) => [node.name, node.passive_ports]),
      () => portMap(all),
    );
    const found = differences(all);
    show(notes, found, () => found.map((text) => h("li", {}, text)));
  });
  return { element, end };
}

/** Parts of the status that not every version of authd has. */
function extra(status) {
  const rows = [];
  if (status.authds) rows.push(["authd instances", status.authds.length]);
  for (const balancer of status.balancers ?? []) {
    const connections = count(balancer.connections, "connection");
    rows.push([`Balancer ${balancer.address}`, `${connections}, reaches ${balancer.nodes.join(", ")}`]);
  }
  return rows;
}

/** One strip of all ports, with a part for each block in the colour of its node. */
function portMap(nodes) {
  const blocks = nodes.flatMap((node, at) =>
    node.passive_ports.map(([from, to]) => ({ node, from, to, kind: KINDS[at % KINDS.length] })),
  );
  if (blocks.length === 0) return h("p", { class: "empty" }, "No node owns ports.");
  const first = Math.min(...blocks.map((block) => block.from));
  const last = Math.max(...blocks.map((block) => block.to)) + 1;
  const x = (port) => ((port - first) / (last - first)) * 1000;
  const parts = blocks.map((block) =>
    svg(
      "rect",
      {
        class: `block ${block.kind}`,
        x: x(block.from),
        y: 0,
        height: 28,
        width: Math.max(1, x(block.to + 1) - x(block.from) - 1),
      },
      svg("title", {}, `${block.node.name}: ${block.from}–${block.to}`),
    ),
  );
  const text = nodes.map((node) => `${node.name} ${ranges(node) || "none"}`).join("; ");
  return [
    svg(
      "svg",
      {
        class: "port-map",
        viewBox: "0 0 1000 28",
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `Ports ${first} to ${last - 1}: ${text}`,
      },
      parts,
    ),
    h("p", { class: "map-ends muted" }, h("span", {}, first), h("span", {}, last - 1)),
    h(
      "p",
      { class: "legend" },
      nodes.map((node, at) =>
        h(
          "span",
          {},
          h("i", { class: `swatch ${KINDS[at % KINDS.length]}` }),
          `${node.name} `,
          h("b", {}, count(ports(node), "port")),
        ),
      ),
    ),
  ];
}

/** What differs between nodes although it should not. */
function differences(nodes) {
  const found = [];
  const versions = new Set(nodes.map((node) => node.version));
  if (versions.size > 1) found.push(`The nodes run different versions: ${[...versions].join(", ")}.`);
  const certificates = new Set(nodes.map(expiry));
  if (certificates.size > 1)
    found.push(`The nodes' certificates expire at different times: ${[...certificates].join(", ")}.`);
  const shares = nodes.filter((node) => node.state === "ready").map(ports);
  if (shares.some((share) => share === 0)) found.push("A ready node owns no passive ports yet.");
  return found;
}
