// Dialogs: details, forms, confirmations; and short messages. `<dialog>` keeps the focus, Escape closes it.

import { command, h } from "./dom.js";

let dialogNumber = 0;

/** Opens a dialog. Returns it with `close()`. `closed` is called at its end. */
export function openDialog({ title, content, wide, closed }) {
  const id = `dialog-${(dialogNumber += 1)}`;
  const heading = h("h2", { id }, title);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close" }, "✕");
  const dialog = h(
    "dialog",
    { "aria-labelledby": id, class: wide ? "wide" : undefined },
    h("header", {}, heading, close),
    h("div", { class: "dialog-body" }, content),
  );
  close.addEventListener("click", () => dialog.close());
  // A click beside the dialog closes it, unless it holds a form that would be lost.
  dialog.addEventListener("mousedown", (event) => {
    if (event.target === dialog && !dialog.querySelector("form")) dialog.close();
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Closes all dialogs, when the screen changes. */
export function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
}

/**
 * A form in a dialog. `fields` are made by `field` and `choice`. `send(values)` returns when the change is
 * made; if it throws, the form shows the message and stays. `line(values)` is the same action as a command.
 */
export function ask({ title, text, fields = [], button, danger, send, line }) {
  const shown = h("div", { class: "same-command" });
  const message = h("p", { class: "form-error", role: "alert", hidden: true });
  const submit = h("button", { type: "submit", class: danger ? "danger" : "primary" }, button);
  const cancel = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel");
  const form = h(
    "form",
    { novalidate: true },
    text ? h("p", {}, text) : null,
    fields.map((entry) => entry.element),
    shown,
    message,
    h("div", { class: "buttons" }, cancel, submit),
  );
  const values = () => Object.fromEntries(fields.map((entry) => [entry.name, entry.read()]));

  function showLine() {
    let text = null;
    try {
      text = line?.(values());
    } catch {
      // A field is not valid yet.
    }
    shown.replaceChildren(
      ...(text ? [h("span", { class: "muted" }, "The same on the command line: "), command(text)] : []),
    );
  }
  form.addEventListener("input", showLine);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    message.hidden = true;
    submit.disabled = true;
    try {
      await send(values());
      dialog.close();
    } catch (error) {
      message.textContent = error.message;
      message.hidden = false;
    }
    submit.disabled = false;
  });
  showLine();
  const dialog = openDialog({ title, content: form });
  (form.querySelector("input, select, textarea") ?? (danger ? cancel : submit)).focus();
  return dialog;
}

let fieldNumber = 0;

/** A text field. `parse(text)` returns its value, or throws an error that says what is expected. */
export function field({
  name,
  label,
  value = "",
  hint,
  placeholder,
  type = "text",
  parse = (text) => text.trim(),
  suggest,
}) {
  const id = `field-${(fieldNumber += 1)}`;
  const properties = {
    id,
    name,
    autocomplete: type === "password" ? "new-password" : "off",
    spellcheck: "false",
  };
  const input = h("input", {
    ...properties,
    type,
    value,
    placeholder,
    "aria-describedby": hint ? `${id}-hint` : undefined,
  });
  const list = suggest?.length
    ? h(
        "datalist",
        { id: `${id}-list` },
        suggest.map((text) => h("option", { value: text })),
      )
    : null;
  if (list) input.setAttribute("list", list.id);
  const element = h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    input,
    list,
    hint ? h("small", { id: `${id}-hint` }, hint) : null,
  );
  return {
    name,
    element,
    read() {
      try {
        return parse(input.value);
      } catch (error) {
        throw new Error(`${label}: ${error.message}`);
      }
    },
  };
}

/** A list to choose from: `options` are `[value, text]`. */
export function choice({ name, label, value, options }) {
  const id = `field-${(fieldNumber += 1)}`;
  const select = h(
    "select",
    { id, name },
    options.map(([key, text]) => h("option", { value: key }, text)),
  );
  select.value = value;
  const element = h("div", { class: "field" }, h("label", { for: id }, label), select);
  return { name, element, read: () => select.value };
}

/** Shows a short message, which screen readers read out. */
export function tell(text, kind = "ok") {
  const messages = document.getElementById("messages");
  const message = h("p", { class: `message ${kind}` }, text);
  messages?.append(message);
  setTimeout(() => message.remove(), kind === "bad" ? 10000 : 5000);
}

/** Runs an action of a button, and shows an error. */
export async function attempt(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    tell(error.message, "bad");
  }
  button.disabled = false;
}
