// Groups: the list, one group, and all changes.

import { get, part, patch, post, remove } from "./api.js";
import { ask, field, openDialog, tell } from "./dialogs.js";
import { h, table } from "./dom.js";
import { count, quoted } from "./format.js";
import { asArguments, policyForm, policyList } from "./policy.js";

const SECTIONS = [
  "permissions",
  "directories",
  "denied_names",
  "folders",
  "limits",
  "quota",
  "bandwidth",
  "uploads",
  "tls",
  "access",
];
const set = (group) =>
  SECTIONS.filter((name) => group[name] !== undefined).map((name) => name.replace("_", " "));

const COLUMNS = [
  { title: "Group", key: (g) => g.name, cell: (g) => h("b", {}, g.name), sort: (g) => g.name },
  {
    title: "Members",
    kind: "number",
    key: (g) => g.members.length,
    sort: (g) => g.members.length,
    first: true,
  },
  { title: "Sets", key: (g) => set(g).join(", ") || "nothing" },
  { title: "From", key: (g) => (g.source === "registry" ? "the API" : "users file"), sort: (g) => g.source },
];

export function groups({ mayChange }) {
  const message = h("p", { class: "muted", role: "status" });
  const add = mayChange
    ? h("button", { type: "button", class: "primary", onclick: () => addGroup() }, "Add a group…")
    : null;
  const grid = table({
    caption: "Groups",
    columns: COLUMNS,
    id: (group) => group.name,
    label: (group) => `Group ${group.name}`,
    empty: "There are no groups.",
    open: (group) => openGroup(group.name),
  });
  const element = h(
    "div",
    {},
    h("h1", {}, "Groups"),
    h("div", { class: "toolbar" }, message, add),
    grid.element,
  );

  async function load() {
    try {
      const all = await get("/v1/groups");
      message.textContent = count(all.length, "group");
      grid.update(all);
    } catch (error) {
      message.textContent = error.message;
    }
  }

  function addGroup() {
    ask({
      title: "Add a group",
      text: "A new group sets nothing. Change it afterwards.",
      fields: [
        field({
          name: "name",
          label: "Name",
          parse: (text) => {
            if (!text.trim()) throw new Error("it is missing");
            return text.trim();
          },
        }),
      ],
      button: "Add the group",
      line: ({ name }) => `ftpctl groups add ${quoted(name)}`,
      send: async ({ name }) => {
        await post("/v1/groups", { name });
        tell(`The group ${name} is added`);
        await load();
      },
    });
  }

  async function openGroup(name) {
    let group;
    try {
      group = await get(`/v1/groups/${part(name)}`);
    } catch (error) {
      return tell(error.message, "bad");
    }
    const again = async (text) => {
      tell(text);
      dialog.close();
      await load();
      openGroup(name);
    };
    const isDeclared = group.source === "declarative";
    const buttons =
      mayChange && !isDeclared
        ? [
            h("button", { type: "button", class: "primary", onclick: () => edit(group, again) }, "Change…"),
            h(
              "button",
              {
                type: "button",
                class: "danger",
                onclick: () =>
                  removeGroup(group, async () => {
                    dialog.close();
                    await load();
                  }),
              },
              "Remove…",
            ),
          ]
        : [];
    const members = group.members.map((member) => h("a", { href: `#/users/${part(member)}` }, member));
    const dialog = openDialog({
      title: `Group ${name}`,
      wide: true,
      content: [
        isDeclared
          ? h(
              "p",
              { class: "muted" },
              "The group is declared in the users file, which this page does not change.",
            )
          : null,
        h("h3", {}, "What it sets"),
        policyList(group, new Map()),
        h("h3", {}, count(members.length, "member")),
        h("p", { class: "members" }, members),
        h("div", { class: "buttons" }, buttons),
      ],
    });
  }

  load();
  return { element, go: openGroup };
}

function edit(group, done) {
  const form = policyForm(group);
  ask({
    title: `Change the group ${group.name}`,
    text: "Values hold for each member separately, from its next login. A member's own value comes first.",
    fields: form.elements.map((element) => ({ name: "", element, read: () => null })),
    button: "Save",
    line: () => {
      const text = asArguments(form.changes());
      return text ? `ftpctl groups set ${quoted(group.name)} ${text}` : null;
    },
    send: async () => {
      const changes = form.changes();
      if (Object.keys(changes).length === 0) throw new Error("nothing is changed");
      await patch(`/v1/groups/${part(group.name)}`, changes);
      await done(`The group ${group.name} is changed`);
    },
  });
}

function removeGroup(group, done) {
  ask({
    title: `Remove the group ${group.name}?`,
    text: "A group with members cannot be removed.",
    button: "Remove the group",
    danger: true,
    line: () => `ftpctl groups remove ${quoted(group.name)}`,
    send: async () => {
      await remove(`/v1/groups/${part(group.name)}`);
      tell(`The group ${group.name} is removed`);
      await done();
    },
  });
}
