// Live: who is connected and what they transfer; a session's dialogue; ending sessions.

import { get, part, query, remove } from "./api.js";
import { ask, field, openDialog, tell } from "./dialogs.js";
import { bar, h, pill, show, table } from "./dom.js";
import { follow, refresh } from "./feed.js";
import { age, bytes, count, duration, full, parseDuration, quoted, rate } from "./format.js";

const ARROWS = { upload: "↑", download: "↓", listing: "≡" };

const transfer = (session) => session.details?.transfer;
const share = (moving) => (moving?.size ? moving.bytes / moving.size : null);

/** What the session does, in a few words. */
function activity(session) {
  const { details } = session;
  if (session.ending) return "ending";
  if (!details) return "not known";
  if (details.transfer) return `${details.transfer.direction} of ${details.path ?? "?"}`;
  return [details.command, details.path].filter(Boolean).join(" ") || "nothing yet";
}

function progress(session) {
  const moving = transfer(session);
  if (!moving) return null;
  const known = share(moving);
  const text = moving.size ? `${bytes(moving.bytes)} of ${bytes(moving.size)}` : bytes(moving.bytes);
  return [known === null ? null : bar(known, `${Math.round(known * 100)} %`), h("small", {}, text)];
}

const COLUMNS = [
  { title: "User", key: (s) => s.user, sort: (s) => s.user },
  { title: "Address", key: (s) => s.address, sort: (s) => s.address, kind: "code" },
  { title: "Node", key: (s) => s.node, sort: (s) => s.node },
  {
    title: "Activity",
    kind: "wide-column",
    key: (s) => `${activity(s)} ${transfer(s)?.direction}`,
    cell: (s) => [
      s.ending ? pill("ending", "warn") : null,
      transfer(s)
        ? h("span", { class: "arrow", "aria-hidden": "true" }, ARROWS[transfer(s).direction])
        : null,
      s.ending ? null : h("span", { class: "path" }, transfer(s) ? (s.details.path ?? "") : activity(s)),
    ],
    sort: activity,
  },
  {
    title: "Progress",
    key: (s) => `${transfer(s)?.bytes} ${transfer(s)?.size}`,
    cell: progress,
    sort: (s) => share(transfer(s)) ?? -1,
    first: true,
  },
  {
    title: "Rate",
    kind: "number",
    key: (s) => rate(transfer(s)?.rate),
    sort: (s) => transfer(s)?.rate ?? -1,
    first: true,
  },
  { title: "Idle", kind: "number", key: (s) => idle(s), sort: (s) => s.details?.idle ?? -1, first: true },
  {
    title: "Connected",
    kind: "number",
    key: (s) => age(s.since),
    sort: (s) => -Date.parse(s.since),
    first: true,
  },
];

function idle(session) {
  if (!session.details || transfer(session)) return "–";
  return duration(Math.max(1, session.details.idle));
}

const matches = (session, words) => {
  const text = [session.user, session.address, session.node, activity(session), session.details?.client]
    .join(" ")
    .toLowerCase();
  return words.every((word) => text.includes(word));
};

export function live({ mayChange }) {
  const filter = h("input", {
    type: "search",
    id: "live-filter",
    placeholder: "user, address, node, path",
    oninput: () => draw(),
  });
  const summary = h("p", { class: "muted", role: "status" });
  const sessions = table({
    caption: "Sessions of the cluster",
    columns: COLUMNS,
    id: (session) => session.id,
    label: (session) => `Session of ${session.user} from ${session.address}`,
    empty: "No session matches.",
    sort: { column: 5, descending: true },
    open: (session) => openSession(session, mayChange),
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Live"),
    h("div", { class: "toolbar" }, h("label", { for: "live-filter" }, "Filter"), filter, summary),
    sessions.element,
  );
  let all = [];
  let hidden = 0;
  let problem = null;

  function draw() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = all.filter((session) => matches(session, words));
    const moving = shown.filter(transfer);
    const sum = moving.reduce((total, session) => total + transfer(session).rate, 0);
    const more = hidden > 0 ? `; ${count(hidden, "session")} without the fastest transfers not shown` : "";
    const counts = `${count(shown.length, "session")}, ${count(moving.length, "transfer")}`;
    const text = `${counts}, ${bytes(sum)}/s${more}`;
    summary.textContent = problem ? `${text} – not current: ${problem}` : text;
    sessions.update(shown);
  }
  const end = follow("sessions", (value, error) => {
    all = value?.sessions ?? [];
    hidden = value ? value.total - all.length : 0;
    problem = error?.message ?? null;
    draw();
  });
  return { element, end };
}

// --- one session --------------------------------------------------------------------------------

function openSession(session, mayChange) {
  const { details } = session;
  const pairs = [
    ["User", session.user],
    ["Address", session.address],
    ["Node", session.node],
    ["Session", session.id],
    ["Since", full(session.since)],
    ["Client program", details?.client ?? "not told"],
    ["TLS", details ? (details.tls ?? "none: in the clear") : "not known"],
    ["Uploaded", bytes(details?.uploaded)],
    ["Downloaded", bytes(details?.downloaded)],
  ];
  const now = h("p", { class: "now" });
  const reason = h("div", { class: "muted" }, "Asking the node …");
  const lines = h("ol", { class: "dialogue", tabindex: "0", "aria-label": "Commands and replies" });
  const ends = mayChange
    ? [
        h(
          "button",
          { type: "button", class: "danger", onclick: () => endSession(session) },
          "End the session…",
        ),
        h(
          "button",
          { type: "button", class: "danger", onclick: () => endUser(session) },
          "End and block the user…",
        ),
      ]
    : [];
  let over = false;
  const stopFollowing = follow("sessions", (all) => {
    if (!all) return;
    const current = all.sessions.find((other) => other.id === session.id);
    // The stream has the first sessions only.
    if (!current && all.total > all.sessions.length) return;
    over = !current;
    for (const button of ends) button.disabled = over;
    show(now, current ?? "gone", () =>
      current
        ? [activity(current), " ", progress(current), " ", rate(transfer(current)?.rate)]
        : "The session has ended.",
    );
  });
  let timer = 0;
  async function load() {
    try {
      const answer = await get(`/v1/sessions/${part(session.id)}/explain`);
      show(reason, [answer.text, answer.command, answer.reply], () => [
        h("p", {}, answer.text),
        answer.command
          ? h(
              "p",
              { class: "muted" },
              "Last failure: ",
              h("code", {}, answer.command),
              " → ",
              h("code", {}, answer.reply),
            )
          : null,
      ]);
      const wasAtEnd = lines.scrollTop + lines.clientHeight >= lines.scrollHeight - 8;
      show(lines, answer.dialogue, () =>
        answer.dialogue.map((line) =>
          h(
            "li",
            { class: line.is_command ? "sent" : "reply" },
            h("time", {}, full(line.time).slice(11)),
            h("span", { "aria-hidden": "true" }, line.is_command ? "→" : "←"),
            h("code", {}, line.text),
          ),
        ),
      );
      if (wasAtEnd) lines.scrollTop = lines.scrollHeight;
    } catch (error) {
      show(reason, error.message, () => h("p", {}, error.message));
    }
    if (!over && dialog.isConnected) timer = setTimeout(load, 2000);
  }
  const dialog = openDialog({
    title: `Session of ${session.user}`,
    wide: true,
    content: [
      h(
        "dl",
        { class: "pairs two" },
        pairs.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
      ),
      h("h3", {}, "Now"),
      now,
      h("h3", {}, "Why the last command failed"),
      reason,
      h("h3", {}, "Dialogue"),
      lines,
      h("div", { class: "buttons" }, ends),
    ],
    closed: () => {
      clearTimeout(timer);
      stopFollowing();
    },
  });
  load();
}

const withReason = (reason) => (reason ? ` --reason ${quoted(reason)}` : "");
const reasonField = () =>
  field({ name: "reason", label: "Reason", hint: "It is in the log and in the client's reply 421." });

function endSession(session) {
  ask({
    title: `End the session of ${session.user}?`,
    text: `The session from ${session.address} ends, and a running transfer is cut. The client may return.`,
    fields: [reasonField()],
    button: "End the session",
    danger: true,
    line: ({ reason }) => `ftpctl kick ${session.id}${withReason(reason)}`,
    send: async ({ reason }) => {
      await remove(query(`/v1/sessions/${part(session.id)}`, { reason }));
      tell(`The session of ${session.user} ends`);
      refresh("sessions", "status");
    },
  });
}

function endUser(session) {
  const seconds = (text) => {
    const parsed = parseDuration(text);
    if (!parsed) throw new Error("expected a time such as 30min, 1h or 2d");
    return { text: text.replaceAll(" ", ""), parsed };
  };
  ask({
    title: `End all sessions of ${session.user} and block the user?`,
    text: "All sessions of the user end, on all nodes. Until the block ends, the user cannot log in.",
    fields: [field({ name: "block", label: "Block for", value: "1h", parse: seconds }), reasonField()],
    button: "End and block",
    danger: true,
    line: ({ block, reason }) =>
      `ftpctl kick --user ${quoted(session.user)} --block ${block.text}${withReason(reason)}`,
    send: async ({ block, reason }) => {
      const answer = await remove(query("/v1/sessions", { user: session.user, block: block.parsed, reason }));
      tell(`Sessions that end: ${answer.sessions.length}. Blocked until ${full(answer.blocked_until)}`);
      refresh("sessions", "status");
    },
  });
}
