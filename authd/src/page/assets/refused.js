// Refused: bans after failed logins, blocks of administrators, and refused logins and uploads by cause.

import { get, part, post, remove } from "./api.js";
import { ask, attempt, choice, field, tell } from "./dialogs.js";
import { command, h, show, table } from "./dom.js";
import { follow } from "./feed.js";
import { ago, count, countdown, full, left, parseDuration, quoted } from "./format.js";

const REFRESH = 5000;

/** The kinds of problems that are refusals; authd takes them from the audit trail. */
const isRefusal = (problem) => problem.kind.endsWith("_refused");

export function refused({ mayChange }) {
  const causes = h("section", { "aria-label": "Refused logins and uploads" });
  const counts = { bans: h("p", { class: "muted" }), blocks: h("p", { class: "muted" }) };
  const bans = table({
    caption: "Bans in effect",
    id: (ban) => `${ban.by} ${ban.name}`,
    empty: "Nobody is banned.",
    columns: [
      { title: "Banned", key: (b) => b.name, kind: "code", sort: (b) => b.name },
      { title: "Kind", key: (b) => (b.by === "user" ? "user name" : "address"), sort: (b) => b.by },
      { title: "Until", key: (b) => full(b.until), sort: (b) => b.until },
      { title: "Left", kind: "number", key: (b) => countdown(left(b.until)), sort: (b) => left(b.until) },
      { title: "", kind: "actions", key: () => "", cell: (b) => (mayChange ? liftButton(b, load) : null) },
    ],
  });
  const blocks = table({
    caption: "Blocks of administrators",
    id: (block) => `${block.kind} ${block.name}`,
    empty: "Nothing is blocked.",
    columns: [
      { title: "Blocked", key: (b) => b.name, kind: "code", sort: (b) => b.name },
      { title: "Kind", key: (b) => b.kind, sort: (b) => b.kind },
      {
        title: "Until",
        key: (b) => (b.until ? full(b.until) : "removed by hand"),
        sort: (b) => b.until ?? "9",
      },
      {
        title: "Left",
        kind: "number",
        key: (b) => (b.until ? countdown(left(b.until)) : "–"),
        sort: (b) => (b.until ? left(b.until) : Infinity),
      },
      { title: "By", key: (b) => `${b.by}, ${full(b.since)}`, sort: (b) => b.since },
      { title: "Reason", key: (b) => b.reason || "–" },
      { title: "", kind: "actions", key: () => "", cell: (b) => (mayChange ? unblockButton(b, load) : null) },
    ],
  });
  const add = mayChange
    ? h("button", { type: "button", class: "primary", onclick: () => addBlock(load) }, "Block…")
    : null;
  const element = h(
    "div",
    {},
    h("h1", {}, "Refused"),
    causes,
    h("div", { class: "toolbar" }, h("h2", {}, "Bans after failed logins"), counts.bans),
    bans.element,
    h("div", { class: "toolbar" }, h("h2", {}, "Blocks"), counts.blocks, add),
    blocks.element,
  );
  const state = { bans: [], blocks: [] };
  let timer = 0;
  let over = false;

  /** Once a second: the countdowns. What is over disappears. */
  function draw() {
    const current = (list) => list.filter((one) => !one.until || left(one.until) > 0);
    bans.update(current(state.bans));
    blocks.update(current(state.blocks));
    counts.bans.textContent = count(current(state.bans).length, "ban");
    counts.blocks.textContent = count(current(state.blocks).length, "block");
  }

  async function load() {
    clearTimeout(timer);
    try {
      [state.bans, state.blocks] = await Promise.all([get("/v1/bans"), get("/v1/blocks")]);
      draw();
    } catch (error) {
      counts.bans.textContent = error.message;
    }
    clearTimeout(timer);
    if (!over) timer = setTimeout(load, REFRESH);
  }

  const stop = follow("problems", (value) => {
    const found = (value?.problems ?? []).filter(isRefusal);
    show(causes, found, () =>
      found.length === 0
        ? null
        : [
            h("h2", {}, "By cause, last 15 minutes"),
            h(
              "ul",
              { class: "problems" },
              found.map((problem) =>
                h(
                  "li",
                  { class: "info" },
                  h(
                    "p",
                    {},
                    problem.text,
                    problem.since ? h("span", { class: "muted" }, ` · ${ago(problem.since)}`) : null,
                  ),
                  h("p", { class: "muted" }, problem.remedy),
                  problem.command ? command(problem.command) : null,
                ),
              ),
            ),
          ],
    );
  });
  const ticking = setInterval(draw, 1000);
  load();
  return {
    element,
    end: () => {
      over = true;
      clearTimeout(timer);
      clearInterval(ticking);
      stop();
    },
  };
}

function liftButton(ban, done) {
  return h(
    "button",
    {
      type: "button",
      class: "small",
      "aria-label": `Lift the ban of ${ban.name}`,
      onclick: (event) =>
        attempt(event.target, async () => {
          await remove(`/v1/bans/${ban.by}/${part(ban.name)}`);
          tell(`The ban of ${ban.name} is lifted`);
          await done();
        }),
    },
    "Lift",
  );
}

function unblockButton(block, done) {
  return h(
    "button",
    {
      type: "button",
      class: "small",
      "aria-label": `Remove the block of ${block.name}`,
      onclick: (event) =>
        attempt(event.target, async () => {
          await remove(`/v1/blocks/${block.kind}/${part(block.name)}`);
          tell(`The block of ${block.name} is removed`);
          await done();
        }),
    },
    "Remove",
  );
}

function addBlock(done) {
  ask({
    title: "Block a user or an address",
    text: "Logins are refused, and running sessions end, until the block ends or is removed.",
    fields: [
      choice({
        name: "kind",
        label: "Kind",
        value: "user",
        options: [
          ["user", "user"],
          ["address", "address or network"],
        ],
      }),
      field({
        name: "name",
        label: "User, address or network",
        hint: "For example acme, 203.0.113.7 or 203.0.113.0/24.",
        parse: (text) => {
          if (!text.trim()) throw new Error("it is missing");
          return text.trim();
        },
      }),
      field({
        name: "time",
        label: "For",
        hint: "For example 30min, 1h or 2d. Empty: until it is removed.",
        parse: (text) => {
          const seconds = parseDuration(text);
          if (seconds === undefined) throw new Error("expected a time such as 30min, 1h or 2d, or nothing");
          return { text: text.replaceAll(" ", ""), seconds };
        },
      }),
      field({ name: "reason", label: "Reason", hint: "It is in the log and in the reply to the client." }),
    ],
    button: "Block",
    danger: true,
    line: ({ name, time, reason }) =>
      `ftpctl block ${quoted(name)}${time.seconds ? ` --for ${time.text}` : ""}${
        reason ? ` --reason ${quoted(reason)}` : ""
      }`,
    send: async ({ kind, name, time, reason }) => {
      const body = { kind, name, reason };
      if (time.seconds) body.seconds = time.seconds;
      await post("/v1/blocks", body);
      tell(`${name} is blocked`);
      await done();
    },
  });
}
