// Numbers, sizes and times as text.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** Bytes with three digits: `1.42 GB`. */
export function bytes(value) {
  if (value === undefined || value === null) return "–";
  let unit = 0;
  let rest = Number(value);
  while (rest >= 999.5 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || rest >= 99.95 ? 0 : rest >= 9.995 ? 1 : 2;
  return `${rest.toFixed(digits)} ${UNITS[unit]}`;
}

export const rate = (value) => (value > 0 ? `${bytes(value)}/s` : "–");

/** Seconds as `3.1 ms`, `12 s`, `4 min`, `5 h 3 min`, `12 d`. */
export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d`;
}

/** The time between two moments in hours, minutes and seconds, for countdowns. */
export function countdown(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  const pad = (number) => String(number).padStart(2, "0");
  const minutes = `${pad(Math.floor((whole % 3600) / 60))}:${pad(whole % 60)}`;
  return whole < 3600 ? minutes : `${Math.floor(whole / 3600)}:${minutes}`;
}

const seconds = (time) => (Date.now() - Date.parse(time)) / 1000;

export const age = (time) => (time ? duration(Math.max(0, seconds(time))) : "–");
export const ago = (time) => (time ? `${age(time)} ago` : "–");
export const left = (time) => -seconds(time);

const FULL = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short" });
const CLOCK = new Intl.DateTimeFormat("sv-SE", { hour: "2-digit", minute: "2-digit" });

/** A time in this browser's time zone: `2026-11-28 03:02:11`. */
export const full = (time) => (time ? FULL.format(new Date(time)) : "–");
export const day = (time) => (time ? DAY.format(new Date(time)) : "–");
export const clock = (unix) => CLOCK.format(new Date(unix * 1000));

export const percent = (value) => (value === undefined || value === null ? "–" : `${Math.round(value)} %`);

/** `1 session`, `2 sessions`. */
export const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** `10 GB`, `500 MB`, `12345` as bytes. Empty: null. Undefined: not a size. */
export function parseBytes(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  const found = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)b?$/i.exec(trimmed);
  if (!found) return undefined;
  const power = " kmgtp".indexOf(found[2].toLowerCase() || " ");
  return Math.round(Number(found[1]) * 1000 ** power);
}

/** A size in the form that `parseBytes` reads without loss. */
export function writeBytes(value) {
  if (value === undefined || value === null) return "";
  let unit = 0;
  let rest = value;
  while (rest >= 1000 && rest % 1000 === 0 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return `${rest} ${UNITS[unit]}`;
}

/** `2h`, `30 min`, `1d` in seconds. Empty: null. Undefined: not a duration. */
export function parseDuration(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  const found = /^(\d+)\s*(s|m|min|h|d)$/i.exec(trimmed);
  if (!found) return undefined;
  return Number(found[1]) * { s: 1, m: 60, min: 60, h: 3600, d: 86400 }[found[2].toLowerCase()];
}

/** A word of a command line for a shell. */
export const quoted = (text) => (/^[\w.:/@=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
