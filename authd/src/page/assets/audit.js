// Audit: who did what, searched by user, path, event, result and time; as CSV or JSON, too.

import { get, query } from "./api.js";
import { openDialog, tell } from "./dialogs.js";
import { h, pill, table } from "./dom.js";
import { bytes, count, full } from "./format.js";

const EVENTS = [
  ["", "everything"],
  ["login", "logins"],
  ["session_end", "ends of sessions"],
  ["upload,append", "uploads"],
  ["download", "downloads"],
  ["delete,rmdir,remove_tree", "deletions"],
  ["rename", "renames"],
  ["mkdir", "new directories"],
  ["chmod,set_time,combine,other", "other operations"],
  ["admin", "administrators' actions"],
];
const RESULTS = [
  ["", "any"],
  ["ok", "done"],
  ["failed", "refused or failed"],
];
const TIMES = [
  ["15m", "last 15 minutes"],
  ["1h", "last hour"],
  ["1day", "last day"],
  ["7days", "last 7 days"],
  ["", "all that Redis has"],
];
const PAGE = 100;

/** What the record is about: paths, or an administrator's action. */
function object(record) {
  if (record.event === "admin") return `${record.action ?? ""} ${record.object ?? ""}`.trim();
  return [record.path, record.new_path].filter(Boolean).join(" → ") || "–";
}

const name = (record) => record.user ?? record.by ?? "–";
const size = (record) => (record.bytes === undefined ? "–" : bytes(record.bytes));

/** The reply's code and the reason of a failure. */
const outcome = (record) => [record.code, record.reason].filter(Boolean).join(" ") || "–";

const COLUMNS = [
  {
    title: "Time",
    key: ({ record }) => full(record.time),
    sort: ({ position, record }) => `${record.time} ${position}`,
  },
  { title: "Event", key: ({ record }) => record.event.replace("_", " ") },
  {
    title: "Result",
    key: ({ record }) => record.result,
    cell: ({ record }) => (record.result === "ok" ? pill("ok", "ok") : pill("failed", "bad")),
  },
  { title: "Who", key: ({ record }) => name(record), sort: ({ record }) => name(record) },
  {
    title: "What",
    kind: "path wide-column",
    key: ({ record }) => object(record),
    sort: ({ record }) => object(record),
  },
  {
    title: "Bytes",
    kind: "number",
    key: ({ record }) => size(record),
    sort: ({ record }) => record.bytes ?? -1,
    first: true,
  },
  { title: "Reply, reason", key: ({ record }) => outcome(record) },
  {
    title: "Address",
    kind: "code",
    key: ({ record }) => record.address ?? "–",
    sort: ({ record }) => record.address,
  },
  { title: "Node", key: ({ record }) => record.node ?? "authd", sort: ({ record }) => record.node },
];

let number = 0;

function labelled(text, input) {
  input.id = `audit-${(number += 1)}`;
  return h("div", { class: "field" }, h("label", { for: input.id }, text), input);
}

const select = (options) =>
  h(
    "select",
    {},
    options.map(([value, text]) => h("option", { value }, text)),
  );

export function audit() {
  const user = h("input", { type: "search", name: "user", spellcheck: "false" });
  const path = h("input", { type: "search", name: "path", placeholder: "/reports/**", spellcheck: "false" });
  const event = select(EVENTS);
  const result = select(RESULTS);
  const since = select(TIMES);
  since.value = "1day";
  const message = h("p", { class: "muted", role: "status" });
  const more = h(
    "button",
    { type: "button", class: "reads", hidden: true, onclick: () => search(false) },
    "Older records",
  );
  const exports = [
    h("button", { type: "button", class: "small reads", onclick: () => save("csv") }, "CSV"),
    h("button", { type: "button", class: "small reads", onclick: () => save("json") }, "JSON"),
  ];
  const form = h(
    "form",
    { class: "search", novalidate: true },
    labelled("User", user),
    labelled("Path", path),
    labelled("Event", event),
    labelled("Result", result),
    labelled("Time", since),
    h("button", { type: "submit", class: "primary reads" }, "Search"),
  );
  const grid = table({
    caption: "Records of the audit trail",
    columns: COLUMNS,
    id: ({ position }) => position,
    label: ({ record }) => `${record.event} of ${name(record)}`,
    empty: "No record matches.",
    sort: { column: 0, descending: true },
    open: ({ record }) => openRecord(record),
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Audit"),
    form,
    h("div", { class: "toolbar" }, message, exports),
    grid.element,
    h("div", { class: "buttons" }, more),
  );
  let found = [];
  let cursor = null;
  let searches = 0;

  async function search(isNew) {
    const own = (searches += 1);
    const parameters = {
      user: user.value.trim(),
      path: path.value.trim(),
      event: event.value,
      result: result.value,
      since: since.value,
      limit: PAGE,
      cursor: isNew ? null : cursor,
    };
    message.textContent = "Searching …";
    try {
      const page = await get(query("/v1/audit", parameters));
      if (own !== searches) return;
      found = isNew ? page.records : [...found, ...page.records];
      cursor = page.next ?? null;
      const older = cursor ? ", and there may be older ones" : "";
      message.textContent = count(found.length, "record") + older;
      grid.update(found);
    } catch (error) {
      if (own !== searches) return;
      message.textContent = error.message;
      cursor = null;
    }
    more.hidden = cursor === null;
    for (const button of exports) button.disabled = found.length === 0;
  }

  function save(kind) {
    const records = found.map((entry) => entry.record);
    const text = kind === "csv" ? asCsv(records) : JSON.stringify(records, null, 2);
    const link = h("a", {
      href: URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" })),
      download: `audit.${kind}`,
    });
    link.click();
    URL.revokeObjectURL(link.href);
    tell(`audit.${kind}: ${count(records.length, "record")}`);
  }

  form.addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    search(true);
  });
  search(true);
  return {
    element,
    go: (argument) => {
      user.value = argument ?? "";
      search(true);
    },
  };
}

const COLUMNS_OF_CSV = [
  "time",
  "event",
  "result",
  "node",
  "session",
  "user",
  "address",
  "command",
  "path",
  "new_path",
  "bytes",
  "offset",
  "seconds",
  "code",
  "reason",
  "detail",
  "by",
  "action",
  "object",
];

/** RFC 4180. A cell that a spreadsheet would compute gets an apostrophe: clients choose names of files. */
export function asCsv(records) {
  const cell = (value) => {
    const text = value === undefined || value === null ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const lines = records.map((record) => COLUMNS_OF_CSV.map((key) => cell(record[key])).join(","));
  return [COLUMNS_OF_CSV.join(","), ...lines, ""].join("\r\n");
}

function openRecord(record) {
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  openDialog({
    title: `${record.event.replace("_", " ")} of ${name(record)}`,
    wide: true,
    content: h(
      "dl",
      { class: "pairs" },
      Object.entries(record).map(([key, value]) => [
        h("dt", {}, key),
        h("dd", { class: "code" }, text(value)),
      ]),
    ),
  });
}
