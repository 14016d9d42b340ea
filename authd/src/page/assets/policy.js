// The properties that users and groups share: the form that changes them, and where each value comes from.

import { choice, field } from "./dialogs.js";
import { h } from "./dom.js";
import { bytes, parseBytes, writeBytes } from "./format.js";

const PERMISSIONS = [
  "list",
  "download",
  "upload",
  "overwrite",
  "append",
  "rename",
  "delete",
  "mkdir",
  "rmdir",
  "attributes",
];

function whole(text) {
  const trimmed = text.trim();
  if (!trimmed) return undefined;
  if (!/^\d+$/.test(trimmed)) throw new Error("expected a whole number, or nothing");
  return Number(trimmed);
}

function size(text) {
  const value = parseBytes(text);
  if (value === undefined) throw new Error("expected a size such as 500 MB or 2 TB, or nothing");
  return value ?? undefined;
}

function list(text) {
  const words = text
    .split(",")
    .map((word) => word.trim())
    .filter(Boolean);
  return words.length ? words : undefined;
}

const number = { parse: whole, write: (value) => value ?? "", text: (value) => String(value) };
const amount = { parse: size, write: writeBytes, text: bytes };
const speed = { parse: size, write: writeBytes, text: (value) => `${bytes(value)}/s` };
const several = {
  parse: list,
  write: (value) => (value ?? []).join(", "),
  text: (value) => value.join(", ") || "none",
};
const SWITCH = { "": "not set", true: "yes", false: "no" };
const onOff = { options: SWITCH, text: (value) => (value ? "yes" : "no") };

/** Every field of the form: section, key, label, kind. */
const FIELDS = [
  ["limits", "sessions", "Sessions at once", number],
  ["limits", "sessions_per_address", "Sessions of one address", number],
  ["limits", "transfers", "Transfers at once on a node", number],
  ["quota", "bytes", "Quota", amount],
  ["quota", "files", "Quota of files and directories", number],
  ["bandwidth", "upload", "Upload a second", speed],
  ["bandwidth", "download", "Download a second", speed],
  ["bandwidth", "session_upload", "Upload a second of one session", speed],
  ["bandwidth", "session_download", "Download a second of one session", speed],
  ["tls", "control", "Login only with TLS", onOff],
  ["tls", "data", "Transfers only with TLS", onOff],
  ["tls", "close_notify", "Uploads end with close_notify", onOff],
  ["access", "allow_from", "Only from networks", several],
  ["access", "deny_from", "Not from networks", several],
  ["access", "hours", "Hours (UTC)", several],
  ...PERMISSIONS.map((name) => ["permissions", name, `May ${name}`, onOff]),
];

const TITLES = {
  limits: "Limits",
  quota: "Quota",
  bandwidth: "Bandwidth",
  tls: "TLS",
  access: "Login conditions",
  permissions: "Permissions",
  uploads: "Uploads",
};

const MODES = {
  "": "not set",
  direct: "direct: visible from the first byte",
  atomic: "atomic: visible when complete",
};

const SECTIONS = ["limits", "quota", "bandwidth", "tls", "access", "permissions"];

/** Fields of a form for the policy of `item`, a user or a group. `changes()` are the sections that differ. */
export function policyForm(item) {
  const inputs = FIELDS.map(([section, key, label, kind]) => {
    const value = item[section]?.[key];
    const name = `${section}.${key}`;
    const made = kind.options
      ? choice({
          name,
          label,
          value: value === undefined ? "" : String(value),
          options: Object.entries(kind.options),
        })
      : field({
          name,
          label,
          value: kind.write(value),
          parse: kind.parse,
          placeholder: value === undefined ? inherited(item, section, key, kind) : undefined,
        });
    return { section, key, kind, made };
  });
  const uploads = choice({
    name: "uploads",
    label: "Way of uploads",
    value: item.uploads ?? "",
    options: Object.entries(MODES),
  });
  const groups = SECTIONS.map((section) =>
    h(
      "details",
      { open: section === "limits" || section === "quota" },
      h("summary", {}, TITLES[section]),
      h(
        "div",
        { class: "fields" },
        inputs.filter((input) => input.section === section).map((input) => input.made.element),
        section === "permissions" ? uploads.element : null,
      ),
    ),
  );

  function changes() {
    const changed = {};
    for (const section of SECTIONS) {
      const before = Object.fromEntries(
        FIELDS.filter(([of]) => of === section)
          .map(([, key]) => [key, item[section]?.[key]])
          .filter(([, value]) => value !== undefined),
      );
      const after = {};
      for (const input of inputs.filter((one) => one.section === section)) {
        const value = input.made.read();
        const read = input.kind.options ? { "": undefined, true: true, false: false }[value] : value;
        if (read !== undefined) after[input.key] = read;
      }
      // An empty list of a condition is a value of its own, which the form cannot write: it stays.
      for (const [key, value] of Object.entries(before)) {
        if (Array.isArray(value) && value.length === 0 && !(key in after)) after[key] = value;
      }
      if (JSON.stringify(sorted(before)) !== JSON.stringify(sorted(after))) changed[section] = after;
    }
    const mode = uploads.read();
    if (mode !== (item.uploads ?? "")) changed.uploads = mode || null;
    return changed;
  }
  return { elements: groups, changes };
}

/** The value that applies while the field is empty. */
function inherited(item, section, key, kind) {
  const value = item.effective?.[section]?.[key];
  return value === undefined || value === null || value.length === 0 ? undefined : kind.text(value);
}

const sorted = (object) => Object.fromEntries(Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1)));

/** The changes as arguments of `ftpctl users set`. */
export function asArguments(changes) {
  const words = [];
  for (const [section, value] of Object.entries(changes)) {
    words.push(
      `${section}=${value === null ? "null" : typeof value === "string" ? value : JSON.stringify(value)}`,
    );
  }
  return words.map((word) => (/["{}[\] ]/.test(word) ? `'${word}'` : word)).join(" ");
}

/** A list of what is set: in effect with where it comes from (users), or the own values (groups). */
export function policyList(item, groups) {
  const rows = [];
  for (const [section, key, label, kind] of FIELDS) {
    const own = item[section]?.[key];
    const value = item.effective ? item.effective[section]?.[key] : own;
    if (value === undefined || value === null) continue;
    const group = item.groups?.find((name) => groups.get(name)?.[section]?.[key] !== undefined);
    const source = own !== undefined ? "own" : group ? `group ${group}` : "default";
    // Of the defaults only those are shown that someone set.
    if (source === "default") continue;
    rows.push([label, kind.text(value), source]);
  }
  const group = item.groups?.find((name) => groups.get(name)?.uploads);
  const mode = item.effective?.uploads ?? item.uploads;
  if (mode && (item.uploads || group))
    rows.push(["Way of uploads", mode, item.uploads ? "own" : `group ${group}`]);
  for (const key of ["directories", "folders", "denied_names", "certificates"]) {
    const value = item.effective?.[key] ?? item[key];
    if (!value?.length) continue;
    const source = item[key]?.length ? "own" : "groups";
    const text = value.map((one) => (typeof one === "string" ? one : describe(one))).join("; ");
    rows.push([key.replace("_", " ").replace(/^./, (first) => first.toUpperCase()), text, source]);
  }
  if (!rows.length)
    return h("p", { class: "muted" }, "Nothing is set: everything is allowed, nothing is limited.");
  return h(
    "table",
    { class: "plain" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Setting", "Value", "From"].map((title) => h("th", { scope: "col" }, title)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map(([label, text, source]) =>
        h("tr", {}, h("th", { scope: "row" }, label), h("td", {}, text), h("td", {}, source)),
      ),
    ),
  );
}

/** A rule in a few words: `/in: upload no`, `/shared → /company/public`. */
function describe(rule) {
  if (rule.target) return `${rule.path} → ${rule.target}`;
  if (rule.permissions) {
    const changes = Object.entries(rule.permissions).map(
      ([name, value]) => `${name} ${value ? "yes" : "no"}`,
    );
    return `${rule.path}: ${changes.join(", ")}`;
  }
  return JSON.stringify(rule);
}
