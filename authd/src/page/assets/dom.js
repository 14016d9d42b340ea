// Builds elements. Text becomes text nodes only, so nothing that a client sent is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("p", { class: "note" }, "text", child)`. Properties that begin with `on` are listeners. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else if (name === "checked") element.checked = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** Replaces the content of an element, unless `key` says that it would be the same. */
export function show(element, key, make) {
  const text = typeof key === "string" ? key : JSON.stringify(key);
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren();
  append(element, [make()]);
}

/**
 * A table whose rows stay the same elements from one update to the next, so that focus, selection and scroll
 * positions survive. A column has `title`, `key(item)` (what the cell depends on), and optionally
 * `cell(item)`, `sort(item)`, `kind` (a class), `first` (descending at the first click).
 */
export function table({ columns, id, caption, empty, sort, open, label }) {
  const rows = new Map();
  let order = sort ?? { column: 0, descending: false };
  let items = [];
  const heads = columns.map((column, at) => {
    const title = column.sort
      ? h("button", { type: "button", class: "sort", onclick: () => sortBy(at) }, column.title)
      : column.title;
    return h("th", { scope: "col", class: column.kind?.includes("number") ? "number" : undefined }, title);
  });
  const body = h("tbody");
  const nothing = h("p", { class: "empty", hidden: true }, empty);
  const grid = h(
    "table",
    {},
    h("caption", { class: "hidden-text" }, caption),
    h("thead", {}, h("tr", {}, heads)),
    body,
  );
  const element = h("div", { class: "table" }, grid, nothing);

  function sortBy(at) {
    const descending = order.column === at ? !order.descending : Boolean(columns[at].first);
    order = { column: at, descending };
    update(items);
  }

  function make(item) {
    const cells = columns.map((column) => h("td", { class: column.kind, "data-title": column.title }));
    const row = h("tr", {}, cells);
    const entry = { row, cells, shown: [], item };
    if (open) {
      row.tabIndex = 0;
      row.classList.add("opens");
      row.addEventListener("click", (event) => {
        if (!event.target.closest("button, a, input")) open(entry.item);
      });
      row.addEventListener("keydown", (event) => {
        if (event.target === row && (event.key === "Enter" || event.key === " ")) {
          event.preventDefault();
          open(entry.item);
        }
      });
    }
    return entry;
  }

  function update(list) {
    items = list;
    const by = columns[order.column].sort;
    if (by) {
      list = [...list].sort((a, b) => compare(by(a), by(b)) || compare(id(a), id(b)));
      if (order.descending) list.reverse();
    }
    heads.forEach((head, at) => {
      const direction = order.descending ? "descending" : "ascending";
      if (columns[at].sort) head.setAttribute("aria-sort", at === order.column ? direction : "none");
    });
    const present = new Set(list.map(id));
    for (const [key, entry] of rows) {
      if (present.has(key)) continue;
      entry.row.remove();
      rows.delete(key);
    }
    let place = body.firstElementChild;
    for (const item of list) {
      const key = id(item);
      if (!rows.has(key)) rows.set(key, make(item));
      const entry = rows.get(key);
      entry.item = item;
      if (open && label) entry.row.setAttribute("aria-label", label(item));
      columns.forEach((column, at) => {
        const shown = String(column.key(item));
        if (entry.shown[at] === shown) return;
        entry.shown[at] = shown;
        entry.cells[at].replaceChildren();
        append(entry.cells[at], [column.cell ? column.cell(item) : shown]);
      });
      if (entry.row === place) place = place.nextElementSibling;
      else body.insertBefore(entry.row, place);
    }
    nothing.hidden = list.length > 0;
    grid.hidden = list.length === 0;
  }

  return { element, update };
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a ?? "").localeCompare(String(b ?? ""), "en", { numeric: true });
}

/** A bar from 0 to 1 with a text for screen readers. */
export function bar(share, text, kind = "") {
  const inner = h("span", { class: `bar-fill ${kind}` });
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("span", { class: "bar", role: "img", "aria-label": text }, inner);
}

/** A word with a colour that repeats its meaning. */
export function pill(text, kind) {
  return h("span", { class: `pill ${kind}` }, text);
}

/** A command line with a button that copies it. */
export function command(text) {
  const button = h(
    "button",
    {
      type: "button",
      class: "quiet small",
      "aria-label": `Copy the command ${text}`,
      onclick: async () => {
        const copied = await copy(text);
        button.textContent = copied ? "copied" : "select it by hand";
        setTimeout(() => (button.textContent = "copy"), 1500);
      },
    },
    "copy",
  );
  return h("span", { class: "command" }, h("code", {}, text), button);
}

/** Without TLS, a browser gives the clipboard only to pages of this machine. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
