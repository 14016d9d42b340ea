// Events: the receivers of events, what waits for them, and dead letters, which can be delivered again.

import { post } from "./api.js";
import { ask, attempt, openDialog, tell } from "./dialogs.js";
import { h, pill, show, table } from "./dom.js";
import { follow, refresh } from "./feed.js";
import { ago, bytes, count, duration, full, quoted } from "./format.js";

const OFF = "No node delivers events: events_file is not set on the nodes, or the storage does not answer.";

/** After an order, the node publishes its state within this time, in ms. */
const PUBLISHED = 1000;

const LETTER = [
  ["Event", (l) => l.event],
  ["Id", (l) => l.id],
  ["Receiver", (l) => l.receiver],
  ["User", (l) => l.user],
  ["Path on the storage", (l) => l.path],
  ["Size", (l) => bytes(l.size)],
  ["Happened", (l) => full(l.time)],
  ["Given up", (l) => full(l.since)],
  ["Attempts", (l) => l.attempts],
  ["Last error", (l) => l.error],
];

export function events({ mayChange }) {
  const state = h("p", { class: "muted" });
  const message = h("p", { class: "empty", hidden: true });
  const counts = { receivers: h("p", { class: "muted" }), letters: h("p", { class: "muted" }) };
  const receivers = table({
    caption: "Receivers of events",
    id: (receiver) => receiver.name,
    empty: "events_file names no receiver.",
    columns: [
      { title: "Receiver", key: (r) => r.name, cell: (r) => h("b", {}, r.name), sort: (r) => r.name },
      {
        title: "State",
        key: (r) => Boolean(r.error),
        cell: (r) => (r.error ? pill("fails", "bad") : pill("works", "ok")),
        sort: (r) => (r.error ? 0 : 1),
      },
      { title: "Waiting", kind: "number", key: (r) => r.pending, sort: (r) => r.pending, first: true },
      {
        title: "Oldest",
        kind: "number",
        key: (r) => duration(r.oldest_seconds),
        sort: (r) => r.oldest_seconds ?? -1,
        first: true,
      },
      { title: "Dead letters", kind: "number", key: (r) => r.dead, sort: (r) => r.dead, first: true },
      { title: "Last error", kind: "path wide-column", key: (r) => r.error ?? "–" },
      {
        title: "",
        kind: "actions",
        key: (r) => r.dead > 0,
        cell: (r) => (mayChange && r.dead > 0 ? replayReceiver(r) : null),
      },
    ],
  });
  const letters = table({
    caption: "Dead letters",
    id: (letter) => `${letter.id} ${letter.receiver}`,
    label: (letter) => `Dead letter of ${letter.path} for ${letter.receiver}`,
    empty: "There are no dead letters.",
    sort: { column: 0, descending: true },
    open: openLetter,
    columns: [
      { title: "Time", key: (l) => full(l.time), sort: (l) => l.time, first: true },
      { title: "Receiver", key: (l) => l.receiver, sort: (l) => l.receiver },
      { title: "Event", key: (l) => l.event, sort: (l) => l.event },
      { title: "User", key: (l) => l.user, sort: (l) => l.user },
      { title: "Path", kind: "path wide-column", key: (l) => l.path, sort: (l) => l.path },
      { title: "Size", kind: "number", key: (l) => bytes(l.size), sort: (l) => l.size, first: true },
      { title: "Attempts", kind: "number", key: (l) => l.attempts, sort: (l) => l.attempts, first: true },
      { title: "Last error", kind: "path", key: (l) => l.error },
      { title: "", kind: "actions", key: () => "", cell: (l) => (mayChange ? replayLetter(l) : null) },
    ],
  });
  const all = mayChange
    ? h("button", { type: "button", hidden: true, onclick: replayAll }, "Replay all…")
    : null;
  const content = h(
    "div",
    { hidden: true },
    state,
    h("div", { class: "toolbar" }, h("h2", {}, "Receivers"), counts.receivers),
    receivers.element,
    h("div", { class: "toolbar" }, h("h2", {}, "Dead letters"), counts.letters, all),
    letters.element,
  );
  const element = h("div", {}, h("h1", {}, "Events"), message, content);

  function draw(value, error) {
    const isOn = Boolean(value?.node);
    message.hidden = isOn && !error;
    show(message, error ? error.message : OFF, () => (error ? error.message : OFF));
    content.hidden = !isOn;
    if (!isOn) return;
    const { node, published } = value;
    state.textContent = `${node} delivers the events of the cluster (published ${ago(published)})`;
    receivers.update(value.receivers);
    letters.update(value.dead_letters);
    const waiting = value.receivers.reduce((sum, receiver) => sum + receiver.pending, 0);
    counts.receivers.textContent = `${count(value.receivers.length, "receiver")}, ${waiting} waiting`;
    const shown = value.dead_letters.length;
    const rest = shown < value.dead ? `, the newest ${shown} are shown` : "";
    counts.letters.textContent = count(value.dead, "dead letter") + rest;
    if (all) all.hidden = value.dead === 0;
  }

  const stop = follow("events", draw);
  return { element, end: stop };
}

/** Asks the delivering node for another delivery. `what` names the dead letters. */
async function replay(body, what) {
  const { node } = await post("/v1/events/replay", body);
  tell(`${node} is asked to deliver ${what} again`);
  setTimeout(() => refresh("events"), PUBLISHED);
}

const replayLetter = (letter) =>
  h(
    "button",
    {
      type: "button",
      class: "small",
      "aria-label": `Replay ${letter.path} for ${letter.receiver}`,
      onclick: (event) =>
        attempt(event.target, () => replay({ receiver: letter.receiver, id: letter.id }, letter.path)),
    },
    "Replay",
  );

const EXPLANATION =
  "They are delivered again. A dead letter stays one until its receiver has it; a receiver that has it already " +
  "ignores its id.";

const replayReceiver = (receiver) =>
  h(
    "button",
    {
      type: "button",
      class: "small",
      "aria-label": `Replay the dead letters of ${receiver.name}`,
      onclick: () =>
        ask({
          title: `Replay the dead letters of ${receiver.name}`,
          text: EXPLANATION,
          button: "Replay",
          line: () => `ftpctl events replay --receiver ${quoted(receiver.name)}`,
          send: () => replay({ receiver: receiver.name }, `the dead letters of ${receiver.name}`),
        }),
    },
    "Replay…",
  );

function replayAll() {
  ask({
    title: "Replay all dead letters",
    text: EXPLANATION,
    button: "Replay all",
    line: () => "ftpctl events replay",
    send: () => replay({}, "all dead letters"),
  });
}

function openLetter(letter) {
  openDialog({
    title: `Dead letter for ${letter.receiver}`,
    wide: true,
    content: h(
      "dl",
      { class: "pairs" },
      LETTER.map(([title, value]) => [h("dt", {}, title), h("dd", { class: "code" }, value(letter))]),
    ),
  });
}
