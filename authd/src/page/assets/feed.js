// What changes all the time: status, sessions, problems. One source for all screens: a stream of server-sent
// events, and requests while there is no stream.

import { get } from "./api.js";

/** Each topic with its path and the time between two requests, in ms. Not all of them are in the stream. */
const TOPICS = {
  status: { path: "/v1/status", pause: 2000, streams: true },
  sessions: {
    path: "/v1/sessions?details=true",
    pause: 1500,
    streams: true,
    read: (sessions) => ({ total: sessions.length, sessions }),
  },
  problems: { path: "/v1/problems", pause: 5000, streams: true },
  events: { path: "/v1/events", pause: 3000 },
  history: { path: "/v1/history", pause: 10000 },
};

const listeners = new Map();
const last = new Map();
/** The next request of each topic that is asked for: a timer, or 0 while a request runs. */
const timers = new Map();
let stream = null;
/** Increases when the session ends, so that late answers are dropped. */
let generation = 0;

/** Calls `listener(value, error)` now, if there is a value, and with each new one. Returns the end of it. */
export function follow(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, new Set());
  listeners.get(topic).add(listener);
  if (last.has(topic)) listener(last.get(topic), null);
  arrange();
  return () => {
    listeners.get(topic)?.delete(listener);
    arrange();
  };
}

/** Asks at once, after an action. */
export function refresh(...topics) {
  for (const topic of topics.filter(isFollowed)) ask(topic);
}

/** Ends all requests, when the session is over. */
export function stop() {
  generation += 1;
  closeStream();
  for (const timer of timers.values()) clearTimeout(timer);
  timers.clear();
  last.clear();
  listeners.clear();
}

const isFollowed = (topic) => (listeners.get(topic)?.size ?? 0) > 0;

/** Opens or closes the stream, and begins and ends requests, as the followed topics need them. */
function arrange() {
  const wanted = Object.keys(TOPICS).filter((topic) => TOPICS[topic].streams && isFollowed(topic));
  const names = document.hidden ? "" : wanted.join(",");
  if (names !== (stream?.names ?? "")) {
    closeStream();
    if (names) openStream(names);
  }
  for (const topic of Object.keys(TOPICS)) {
    const isAsked = isFollowed(topic) && !(TOPICS[topic].streams && stream?.isOpen);
    if (isAsked && !timers.has(topic)) ask(topic);
    if (!isAsked && timers.has(topic)) {
      clearTimeout(timers.get(topic));
      timers.delete(topic);
    }
    if (!isFollowed(topic)) last.delete(topic);
  }
}

function openStream(names) {
  const source = new EventSource(`/v1/live?events=${names}`);
  const opened = { source, names, isOpen: false };
  stream = opened;
  source.addEventListener("open", () => {
    opened.isOpen = true;
    arrange();
  });
  // The browser connects again by itself, except after an answer that is not 200. Meanwhile there are
  // requests, which also notice that the session is over.
  source.addEventListener("error", () => {
    if (stream !== opened) return;
    opened.isOpen = false;
    arrange();
    if (source.readyState === EventSource.CLOSED) setTimeout(() => reopen(opened), 30000);
  });
  for (const topic of names.split(",")) {
    source.addEventListener(topic, (event) => arrived(topic, JSON.parse(event.data)));
  }
  source.addEventListener("unavailable", (event) => {
    const { event: topic, message } = JSON.parse(event.data);
    tell(topic, last.get(topic), new Error(message));
  });
}

function reopen(closed) {
  if (stream !== closed) return;
  closeStream();
  arrange();
}

function closeStream() {
  stream?.source.close();
  stream = null;
}

async function ask(topic) {
  clearTimeout(timers.get(topic));
  timers.set(topic, 0);
  const { path, pause, read } = TOPICS[topic];
  const begun = generation;
  let answer;
  let error = null;
  try {
    answer = await get(path);
  } catch (failure) {
    error = failure;
  }
  if (begun !== generation) return;
  if (error) tell(topic, last.get(topic), error);
  else arrived(topic, read ? read(answer) : answer);
  if (timers.get(topic) === 0) {
    timers.set(
      topic,
      setTimeout(() => ask(topic), document.hidden ? pause * 5 : pause),
    );
  }
}

function arrived(topic, value) {
  if (!isFollowed(topic)) return;
  last.set(topic, value);
  tell(topic, value, null);
}

function tell(topic, value, error) {
  for (const listener of [...(listeners.get(topic) ?? [])]) listener(value, error);
}

document.addEventListener("visibilitychange", arrange);
