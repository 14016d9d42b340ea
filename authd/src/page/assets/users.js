// Users: the list, one user with the effective settings, and all changes.

import { get, part, patch, post, query, remove } from "./api.js";
import { ask, attempt, field, openDialog, tell } from "./dialogs.js";
import { bar, command, h, pill, table } from "./dom.js";
import { bytes, count, full, percent, quoted } from "./format.js";
import { asArguments, policyForm, policyList } from "./policy.js";

const REFRESH = 5000;

/** The larger share of the quota, as a bar with the sizes. */
export function quotaBar(usage) {
  if (!usage || usage.percent === null) return usage?.bytes ? h("small", {}, bytes(usage.bytes)) : "–";
  const kind = usage.percent >= 100 ? "bad" : usage.percent >= 90 ? "warn" : "";
  const size =
    usage.bytes_limit === null
      ? count(usage.files, "file")
      : `${bytes(usage.bytes)} of ${bytes(usage.bytes_limit)}`;
  return [
    bar(usage.percent / 100, `${percent(usage.percent)} of the quota`, kind),
    h("small", {}, `${size}, ${percent(usage.percent)}`),
  ];
}

const COLUMNS = [
  { title: "User", key: (u) => u.name, cell: (u) => h("b", {}, u.name), sort: (u) => u.name },
  {
    title: "State",
    key: (u) => u.enabled,
    cell: (u) => (u.enabled ? pill("enabled", "ok") : pill("disabled", "bad")),
    sort: (u) => Number(u.enabled),
  },
  { title: "Sessions", kind: "number", key: (u) => u.sessions, sort: (u) => u.sessions, first: true },
  {
    title: "Quota",
    key: (u) => JSON.stringify(u.usage ?? null),
    cell: (u) => quotaBar(u.usage),
    sort: (u) => u.usage?.percent ?? -1,
    first: true,
  },
  { title: "Home", key: (u) => u.home, kind: "code path", sort: (u) => u.home },
  { title: "Groups", key: (u) => u.groups.join(", ") || "–", sort: (u) => u.groups.join() },
  { title: "From", key: (u) => (u.source === "registry" ? "the API" : "users file"), sort: (u) => u.source },
];

export function users({ mayChange, has }) {
  const filter = h("input", {
    type: "search",
    id: "user-filter",
    placeholder: "name, group, home",
    oninput: () => draw(),
  });
  const message = h("p", { class: "muted", role: "status" });
  const add = mayChange
    ? h("button", { type: "button", class: "primary", onclick: () => addUser() }, "Add a user…")
    : null;
  const grid = table({
    caption: "Users",
    columns: COLUMNS,
    id: (user) => user.name,
    label: (user) => `User ${user.name}`,
    empty: "No user matches.",
    open: (user) => openUser(user.name),
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Users"),
    h("div", { class: "toolbar" }, h("label", { for: "user-filter" }, "Filter"), filter, message, add),
    grid.element,
  );
  const state = { all: [], usage: new Map(), sessions: new Map() };
  let timer = 0;
  let over = false;

  function draw() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = state.all.map((user) => ({
      ...user,
      usage: state.usage.get(user.name),
      sessions: state.sessions.get(user.name) ?? 0,
    }));
    const shown = all.filter((user) => {
      const text = [user.name, user.home, ...user.groups].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    message.textContent = count(shown.length, "user");
    grid.update(shown);
  }

  async function load() {
    clearTimeout(timer);
    try {
      const [all, usage, sessions] = await Promise.all([
        get("/v1/users"),
        get("/v1/usage").catch(() => []),
        get("/v1/sessions").catch(() => []),
      ]);
      state.all = all;
      state.usage = new Map(usage.map((one) => [one.user, one]));
      state.sessions = new Map();
      for (const { user } of sessions) state.sessions.set(user, (state.sessions.get(user) ?? 0) + 1);
      draw();
    } catch (error) {
      message.textContent = error.message;
    }
    clearTimeout(timer);
    if (!over) timer = setTimeout(load, REFRESH);
  }

  async function addUser() {
    const known = (await get("/v1/groups").catch(() => [])).map((group) => group.name);
    ask({
      title: "Add a user",
      fields: [
        field({ name: "name", label: "Name", parse: needed }),
        field({
          name: "password",
          label: "Password",
          type: "password",
          parse: (text) => {
            if (!text) throw new Error("it is missing");
            return text;
          },
        }),
        field({ name: "home", label: "Home", hint: "A path within the storage. Empty: / and the name." }),
        field({
          name: "groups",
          label: "Groups",
          hint: "Separated by commas.",
          parse: words,
          suggest: known,
        }),
      ],
      button: "Add the user",
      line: ({ name, home, groups }) =>
        `ftpctl users add ${quoted(name)}${home ? ` home=${quoted(home)}` : ""}${
          groups.length ? ` groups='${JSON.stringify(groups)}'` : ""
        }`,
      send: async ({ name, password, home, groups }) => {
        const body = { name, password, groups };
        if (home) body.home = home;
        await post("/v1/users", body);
        tell(`${name} is added`);
        await load();
      },
    });
  }

  async function openUser(name) {
    let user;
    let groups;
    try {
      [user, groups] = await Promise.all([get(`/v1/users/${part(name)}`), get("/v1/groups")]);
    } catch (error) {
      return tell(error.message, "bad");
    }
    const byName = new Map(groups.map((group) => [group.name, group]));
    const usage = await get(`/v1/users/${part(name)}/usage`).catch(() => null);
    const isDeclared = user.source === "declarative";
    const again = async (text) => {
      if (text) tell(text);
      dialog.close();
      await load();
      openUser(name);
    };
    const facts = [
      [
        "State",
        [
          user.enabled ? pill("enabled", "ok") : pill("disabled", "bad"),
          user.override ? ` by an override since ${full(new Date(user.override.since * 1000))}` : "",
        ],
      ],
      ["Home", user.home],
      ["Groups", user.groups.join(", ") || "none"],
      has("/v1/audit") ? ["Audit", h("a", { href: `#/audit/${part(name)}` }, `what ${name} did`)] : ["", ""],
      [
        "Comes from",
        isDeclared
          ? "the users file or the settings; only “enabled” can be changed here"
          : "the API, kept in Redis",
      ],
      ["SITE WHO", user.admin ? "shows all sessions" : "shows the own sessions"],
      [
        "Home holds",
        usage && usage.bytes !== null
          ? `${bytes(usage.bytes)} in ${count(usage.files, "file")}, counted ${full(usage.counted)}`
          : "not counted",
      ],
      ["Quota", quotaBar(usage)],
    ];
    const toggle = user.enabled
      ? h("button", { type: "button", class: "danger", onclick: () => disable(user, again) }, "Disable…")
      : h(
          "button",
          {
            type: "button",
            onclick: (event) =>
              attempt(event.target, async () => {
                await patch(`/v1/users/${part(name)}`, { enabled: true });
                await again(`${name} may log in again`);
              }),
          },
          "Enable",
        );
    const button = (kind, text, onclick) => h("button", { type: "button", class: kind, onclick }, text);
    const changes = isDeclared
      ? [toggle]
      : [
          button("primary", "Change…", () => edit(user, again)),
          button("", "Set the password…", () => setPassword(user, again)),
          toggle,
          button("danger", "Remove…", () => removeUser(user, removed)),
        ];
    const removed = async () => {
      dialog.close();
      await load();
    };
    const dialog = openDialog({
      title: `User ${name}`,
      wide: true,
      content: [
        h(
          "dl",
          { class: "pairs" },
          facts.filter(([title]) => title).map(([title, text]) => [h("dt", {}, title), h("dd", {}, text)]),
        ),
        h("h3", {}, "Settings in effect"),
        user.effective
          ? policyList(user, byName)
          : h(
              "p",
              { class: "banner bad" },
              "A group of the user is missing or cannot be read. The user cannot log in.",
            ),
        h("h3", {}, `Can ${name} log in?`),
        explain(name),
        h("div", { class: "buttons" }, mayChange ? changes : []),
      ],
    });
  }

  load();
  return {
    element,
    go: openUser,
    end: () => {
      over = true;
      clearTimeout(timer);
    },
  };
}

function needed(text) {
  if (!text.trim()) throw new Error("it is missing");
  return text.trim();
}

const words = (text) =>
  text
    .split(",")
    .map((word) => word.trim())
    .filter(Boolean);

const VERDICTS = { ok: ["yes", "ok"], refused: ["no", "bad"], unknown: ["depends", "warn"] };

/** Asks authd which condition would refuse a login, without a password and without counting anything. */
function explain(name) {
  const id = "explain-from";
  const address = h("input", { id, type: "text", placeholder: "any address", spellcheck: "false" });
  const answer = h("div", { role: "status" });
  const form = h(
    "form",
    { class: "toolbar", novalidate: true },
    h("label", { for: id }, "from"),
    address,
    h("button", { type: "submit" }, "Check"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const from = address.value.trim();
      const found = await get(query(`/v1/users/${part(name)}/explain`, { address: from }));
      answer.replaceChildren(
        h(
          "p",
          {},
          found.may_log_in ? pill("may log in", "ok") : pill("cannot log in", "bad"),
          " The password is not checked.",
        ),
        h(
          "ul",
          { class: "gates" },
          found.gates.map((gate) =>
            h("li", {}, pill(...VERDICTS[gate.verdict]), " ", h("b", {}, gate.gate), ` ${gate.text}`),
          ),
        ),
        found.remedy ? h("p", {}, "Remedy: ", command(found.remedy)) : "",
      );
    } catch (error) {
      answer.replaceChildren(h("p", { class: "form-error" }, error.message));
    }
  });
  return [form, answer];
}

function edit(user, done) {
  const form = policyForm(user);
  const home = field({ name: "home", label: "Home", value: user.home, parse: needed });
  const groups = field({ name: "groups", label: "Groups", value: user.groups.join(", "), parse: words });
  const changed = () => {
    const changes = form.changes();
    if (home.read() !== user.home) changes.home = home.read();
    if (JSON.stringify(groups.read()) !== JSON.stringify(user.groups)) changes.groups = groups.read();
    return changes;
  };
  ask({
    title: `Change ${user.name}`,
    text: "An empty field takes the value of the groups, or the default. Changes apply to the next login.",
    fields: [home, groups, ...form.elements.map((element) => ({ name: "", element, read: () => null }))],
    button: "Save",
    line: () => {
      const text = asArguments(changed());
      return text ? `ftpctl users set ${quoted(user.name)} ${text}` : null;
    },
    send: async () => {
      const changes = changed();
      if (Object.keys(changes).length === 0) throw new Error("nothing is changed");
      await patch(`/v1/users/${part(user.name)}`, changes);
      await done(`${user.name} is changed`);
    },
  });
}

function setPassword(user, done) {
  ask({
    title: `Set the password of ${user.name}`,
    text: "All sessions of the user end at once.",
    fields: [
      field({
        name: "password",
        label: "New password",
        type: "password",
        parse: (text) => {
          if (!text) throw new Error("it is missing");
          return text;
        },
      }),
    ],
    button: "Set the password",
    line: () => `ftpctl users passwd ${quoted(user.name)}`,
    send: async ({ password }) => {
      await patch(`/v1/users/${part(user.name)}`, { password });
      await done(`${user.name} has a new password`);
    },
  });
}

function disable(user, done) {
  ask({
    title: `Disable ${user.name}?`,
    text: "The user cannot log in until it is enabled again, and all its sessions end at once.",
    button: "Disable",
    danger: true,
    line: () => `ftpctl users disable ${quoted(user.name)}`,
    send: async () => {
      await patch(`/v1/users/${part(user.name)}`, { enabled: false });
      await done(`${user.name} is disabled`);
    },
  });
}

function removeUser(user, done) {
  ask({
    title: `Remove ${user.name}?`,
    text: "All sessions of the user end. The files of its home stay.",
    button: "Remove the user",
    danger: true,
    line: () => `ftpctl users remove ${quoted(user.name)}`,
    send: async () => {
      await remove(`/v1/users/${part(user.name)}`);
      tell(`${user.name} is removed`);
      await done();
    },
  });
}
