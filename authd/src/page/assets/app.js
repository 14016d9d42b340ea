// The frame of the page: login, navigation, keyboard, and the screen that the address names.

import { ApiError, current, get, logIn, logOut, onEnd } from "./api.js";
import { closeDialogs, openDialog, tell } from "./dialogs.js";
import { h, show } from "./dom.js";
import { follow, stop } from "./feed.js";
import { count } from "./format.js";
import { audit } from "./audit.js";
import { cluster } from "./cluster.js";
import { events } from "./events.js";
import { groups } from "./groups.js";
import { live } from "./live.js";
import { overview } from "./overview.js";
import { refused } from "./refused.js";
import { users } from "./users.js";

/** Name in the address, title, key, and the function that makes the screen: `{ element, end }`. */
const SCREENS = [
  ["overview", "Overview", "o", overview],
  ["live", "Live", "l", live],
  ["users", "Users", "u", users],
  ["groups", "Groups", "g", groups],
  ["refused", "Refused", "r", refused],
  ["audit", "Audit", "a", audit],
  ["events", "Events", "e", events],
  ["cluster", "Cluster", "c", cluster],
];

/** Screens that need a route which an earlier authd does not have. */
const NEEDED = { audit: "/v1/audit", events: "/v1/events" };

const app = document.getElementById("app");
let session = null;
let screen = null;
let available = SCREENS;
/** The paths of the API of this authd. */
let routes = {};

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

/** Settings of this browser. A browser that stores nothing keeps the defaults. */
function stored(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function setTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function nextTheme(button) {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(stored("theme") ?? "auto") + 1) % names.length];
  stored("theme", next);
  setTheme(next);
  button.textContent = themeText();
}

const themeText = () => `Colours: ${THEMES[stored("theme")] ?? THEMES.auto}`;

// --- login --------------------------------------------------------------------------------------

function showLogin(message) {
  stop();
  closeDialogs();
  screen?.end?.();
  screen = null;
  const error = h("p", { class: "form-error", role: "alert", hidden: !message }, message);
  const name = h("input", {
    id: "name",
    name: "name",
    autocomplete: "username",
    required: true,
    value: stored("name") ?? "admin",
    spellcheck: "false",
  });
  const token = h("input", {
    id: "token",
    name: "token",
    type: "password",
    autocomplete: "current-password",
    required: true,
  });
  const button = h("button", { type: "submit", class: "primary" }, "Log in");
  const form = h(
    "form",
    { class: "login card" },
    h("h1", {}, "Distributed FTP"),
    h("div", { class: "field" }, h("label", { for: "name" }, "Administrator"), name),
    h("div", { class: "field" }, h("label", { for: "token" }, "Token"), token),
    error,
    button,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    error.hidden = true;
    try {
      session = await logIn(name.value.trim(), token.value);
      stored("name", session.name);
      await showFrame();
    } catch (failure) {
      const wait = failure.wait ? ` (in ${count(failure.wait, "second")})` : "";
      error.textContent = `${failure.message}${wait}`;
      error.hidden = false;
      button.disabled = false;
      token.select();
    }
  });
  document.title = "Log in – Distributed FTP";
  app.setAttribute("aria-busy", "false");
  app.replaceChildren(h("main", { class: "login-page" }, form));
  (name.value ? token : name).focus();
}

// --- frame --------------------------------------------------------------------------------------

async function showFrame() {
  available = await existing();
  const theme = h("button", { type: "button", class: "quiet", onclick: () => nextTheme(theme) }, themeText());
  const health = h("a", { class: "health", href: "#/overview" });
  const role = session.role === "viewer" ? " (may only read)" : "";
  const links = available.map(([name, title]) => h("a", { href: `#/${name}`, "data-screen": name }, title));
  app.replaceChildren(
    h("a", { class: "skip", href: "#main", onclick: skip }, "Skip to the content"),
    h(
      "header",
      { class: "top" },
      h("strong", { class: "brand" }, "Distributed FTP"),
      health,
      h("span", { class: "spacer" }),
      h("span", { class: "muted who" }, `${session.name}${role}`),
      theme,
      h("button", { type: "button", class: "quiet", onclick: showHelp }, "Keys"),
      h("button", { type: "button", class: "quiet", onclick: leave }, "Log out"),
    ),
    h("nav", { "aria-label": "Screens" }, links),
    h("main", { id: "main", tabindex: "-1" }),
    h("div", { id: "messages", role: "status", "aria-live": "polite" }),
  );
  app.setAttribute("aria-busy", "false");
  follow("problems", (value, error) => showHealth(health, value, error));
  showScreen();
}

/** The screens whose routes this authd has. */
async function existing() {
  routes = (await get("/openapi.json")).paths;
  return SCREENS.filter(([name]) => !NEEDED[name] || NEEDED[name] in routes);
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function showHealth(element, value, error) {
  const serious = value?.problems.filter((problem) => problem.severity !== "info") ?? [];
  const [kind, text] = error
    ? ["bad", error instanceof ApiError ? error.message : "this page failed"]
    : serious.some((problem) => problem.severity === "critical")
      ? ["bad", count(serious.length, "problem")]
      : serious.length
        ? ["warn", count(serious.length, "problem")]
        : value.unknown?.length
          ? ["warn", "not everything is known"]
          : ["ok", "everything works"];
  show(element, [kind, text], () => h("span", { class: `pill ${kind}` }, text));
}

async function leave() {
  try {
    await logOut();
  } catch (error) {
    if (error.status !== 401) return tell(error.message, "bad");
  }
  session = null;
  showLogin("");
}

function showScreen() {
  if (!session) return;
  const [, name, ...rest] = location.hash.split("/");
  const found = available.find(([known]) => known === name) ?? available[0];
  const argument = rest.length ? decodeURIComponent(rest.join("/")) : null;
  if (screen?.name === found[0] && screen.go) return screen.go(argument);
  closeDialogs();
  screen?.end?.();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.screen === found[0]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${found[1]} – Distributed FTP`;
  screen = {
    name: found[0],
    ...found[3]({ session, mayChange: session.role !== "viewer", has: (path) => path in routes }),
  };
  const main = document.getElementById("main");
  main.replaceChildren(screen.element);
  main.scrollTop = 0;
  if (argument) screen.go?.(argument);
}

// --- keyboard -----------------------------------------------------------------------------------

const keysAreOn = () => stored("keys") !== "off";

function showHelp() {
  const toggle = h("input", {
    type: "checkbox",
    id: "keys-on",
    checked: keysAreOn(),
    onchange: () => stored("keys", toggle.checked ? "on" : "off"),
  });
  const rows = [
    ...available.map(([, title, key]) => [key, title]),
    ["/", "Filter of the screen"],
    ["Enter", "Open the row"],
    ["Esc", "Close"],
    ["?", "This list"],
  ];
  openDialog({
    title: "Keys",
    content: [
      h(
        "dl",
        { class: "keys" },
        rows.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)]),
      ),
      h("p", {}, toggle, h("label", { for: "keys-on" }, " Single keys change the screen")),
    ],
  });
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea");
  if (!session || isTyping || event.ctrlKey || event.altKey || event.metaKey || !keysAreOn()) return;
  if (document.querySelector("dialog[open]")) return;
  const found = available.find(([, , key]) => key === event.key);
  if (found) location.hash = `#/${found[0]}`;
  else if (event.key === "?") showHelp();
  else if (event.key === "/") document.querySelector("main input[type=search]")?.focus();
  else return;
  event.preventDefault();
});

window.addEventListener("hashchange", showScreen);
onEnd(() => {
  if (!session) return;
  session = null;
  showLogin("The session is over. Log in again.");
});

setTheme(stored("theme"));
try {
  session = await current();
  if (session) await showFrame();
  else showLogin("");
} catch (error) {
  showLogin(error.message);
}
