// Overview: what is wrong, the nodes and their load, the last hour.

import { part, post } from "./api.js";
import { chart } from "./charts.js";
import { ask, attempt, tell } from "./dialogs.js";
import { bar, command, h, pill, show } from "./dom.js";
import { follow, refresh } from "./feed.js";
import { age, ago, bytes, count, duration, full, left, rate } from "./format.js";

export const STATES = { ready: "ok", starting: "warn", draining: "warn" };

export function overview({ mayChange, has }) {
  const mayUndrain = mayChange && has("/v1/nodes/{name}/undrain");
  const problems = h("section", { "aria-label": "Problems" });
  const facts = h("dl", { class: "facts" });
  const cards = h("div", { class: "cards" });
  const throughput = chart({
    title: "Throughput",
    lines: [
      { name: "uploads", kind: "first", value: (point) => point.upload_rate },
      { name: "downloads", kind: "second", value: (point) => point.download_rate },
    ],
    text: (value) => `${bytes(value)}/s`,
  });
  let interval = 10;
  const perMinute = (number) => (number * 60) / interval;
  const logins = chart({
    title: "Logins a minute",
    lines: [
      { name: "accepted", kind: "first", value: (point) => perMinute(point.logins) },
      { name: "refused", kind: "third", value: (point) => perMinute(point.logins_refused) },
    ],
    text: (value) => String(Math.round(value * 10) / 10),
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Overview"),
    problems,
    facts,
    h("h2", {}, "Nodes"),
    cards,
    h("h2", {}, "Last hour"),
    h("div", { class: "charts" }, throughput.element, logins.element),
  );
  const nodes = new Map();

  const ends = [
    follow("problems", (value, error) => showProblems(problems, value, error)),
    follow("status", (value, error) => {
      if (!value) {
        show(facts, ["error", error?.message], () => h("p", { class: "empty" }, error?.message));
        return;
      }
      showFacts(facts, value);
      const names = value.nodes.map((node) => node.name);
      for (const [name, card] of nodes) {
        if (names.includes(name)) continue;
        card.remove();
        nodes.delete(name);
      }
      for (const node of [...value.nodes].sort((a, b) =>
        a.name.localeCompare(b.name, "en", { numeric: true }),
      )) {
        if (!nodes.has(node.name))
          nodes.set(node.name, h("article", { class: "card", "aria-label": node.name }));
        const card = nodes.get(node.name);
        showNode(card, node, mayChange, mayUndrain);
        if (card.parentNode !== cards) cards.append(card);
      }
    }),
    follow("history", (value) => {
      if (!value) return;
      interval = value.interval;
      throughput.update(value.points, interval);
      logins.update(value.points, interval);
    }),
  ];
  return { element, end: () => ends.forEach((end) => end()) };
}

const SEVERITIES = { critical: "bad", warning: "warn", info: "info" };

export function showProblems(element, value, error) {
  if (!value) {
    show(element, error?.message ?? "", () => h("p", { class: "banner bad" }, error?.message));
    return;
  }
  const minutes = value.problems.map(
    (problem) => problem.since && Math.floor(Date.parse(problem.since) / 60000),
  );
  show(element, [value.problems, value.unknown, minutes, error?.message], () => [
    value.problems.length === 0 && !value.unknown?.length
      ? h("p", { class: "banner ok" }, "No problems: all dependencies of all nodes work.")
      : null,
    h(
      "ul",
      { class: "problems" },
      value.problems.map((problem) =>
        h(
          "li",
          { class: SEVERITIES[problem.severity] },
          h(
            "p",
            {},
            pill(problem.severity, SEVERITIES[problem.severity]),
            " ",
            problem.node ? h("b", {}, `${problem.node}: `) : null,
            problem.text,
            problem.count > 1 && !problem.kind.endsWith("_refused") ? ` (${problem.count} times)` : null,
            problem.since ? h("span", { class: "muted" }, ` · ${ago(problem.since)}`) : null,
          ),
          h("p", { class: "muted" }, problem.remedy),
          problem.command ? command(problem.command) : null,
        ),
      ),
    ),
    value.unknown?.length
      ? h(
          "p",
          { class: "banner warn" },
          `Could not be asked: ${value.unknown.join("; ")}. The list may be incomplete.`,
        )
      : null,
  ]);
}

function showFacts(element, status) {
  const ready = status.nodes.filter((node) => node.state === "ready").length;
  const expiry = status.certificate_expiry;
  const facts = [
    ["Nodes ready", `${ready} of ${status.nodes.length}`],
    ["Sessions", status.sessions],
    ["Transfers", status.transfers],
    ["Uploads", rate(status.upload_rate)],
    ["Downloads", rate(status.download_rate)],
    ["Redis", status.redis_seconds === null ? "away" : duration(status.redis_seconds)],
    ["Certificate", expiry ? `${duration(Math.max(0, left(expiry)))} left` : "none"],
  ];
  show(element, facts, () => facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
}

function showNode(card, node, mayChange, mayUndrain) {
  const activity = node.activity ?? {};
  const rows = [
    ["Sessions", node.sessions],
    ["Transfers", node.transfers],
    ["Uploads", rate(activity.upload_rate)],
    ["Downloads", rate(activity.download_rate)],
    ["Slowest fsync", activity.fsync_max > 0 ? duration(activity.fsync_max) : "–"],
    ["Oldest operation", activity.oldest_operation > 0 ? duration(activity.oldest_operation) : "–"],
  ];
  const load = activity.load ?? 0;
  const percent = `${Math.round(load * 100)} %`;
  const state = node.drain === "none" ? node.state : node.drain === "asked" ? "drain asked" : node.drain;
  const age_ = age(node.since);
  show(card, [state, node.failing, rows, percent, node.version, age_, node.drain_until], () => [
    h(
      "header",
      {},
      h("h3", {}, node.name),
      pill(
        state,
        node.failing.some((f) => f.required)
          ? "bad"
          : node.drain === "none"
            ? (STATES[node.state] ?? "bad")
            : "warn",
      ),
    ),
    h(
      "p",
      { class: "load" },
      h("span", {}, `Load ${percent}`),
      bar(load, `load ${percent}`, load > 0.9 ? "bad" : load > 0.7 ? "warn" : ""),
    ),
    h(
      "dl",
      { class: "pairs" },
      rows.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
    ),
    node.failing.length
      ? h(
          "ul",
          { class: "failing" },
          node.failing.map((failing) =>
            h("li", {}, pill(failing.dependency, failing.required ? "bad" : "warn"), ` ${failing.error}`),
          ),
        )
      : h("p", { class: "muted" }, "All dependencies work."),
    node.drain_until ? h("p", { class: "muted" }, `The drain ends by ${full(node.drain_until)}.`) : null,
    h(
      "footer",
      {},
      h("span", { class: "muted" }, `${node.version || "unknown version"} · up ${age_}`),
      mayChange && node.drain === "none" && node.state !== "draining"
        ? h("button", { type: "button", class: "small", onclick: () => drain(node) }, "Drain…")
        : null,
      mayUndrain && ["asked", "draining"].includes(node.drain)
        ? h(
            "button",
            { type: "button", class: "small", onclick: (event) => undrain(event.target, node) },
            "Undrain",
          )
        : null,
    ),
  ]);
}

function undrain(button, node) {
  attempt(button, async () => {
    await post(`/v1/nodes/${part(node.name)}/undrain`);
    tell(`${node.name} is asked to serve again`);
    refresh("status", "problems");
  });
}

function drain(node) {
  ask({
    title: `Drain ${node.name}`,
    text: `${node.name} accepts no new sessions. Its idle sessions end. Its transfers (now
      ${node.transfers}) may finish within the node's drain_timeout. Then the node stops.`,
    button: `Drain ${node.name}`,
    danger: true,
    line: () => `ftpctl drain ${node.name}`,
    send: async () => {
      await post(`/v1/nodes/${part(node.name)}/drain`);
      tell(`${node.name} is asked to drain`);
      refresh("status", "problems");
    },
  });
}
