// Requests to authd. The browser sends the session's cookie; `csrf` shows that this page sent the request.

let csrf = "";
let ended = () => {};

/** An answer that is not 2xx, or none. */
export class ApiError extends Error {
  constructor(status, code, message, wait) {
    super(message);
    this.status = status;
    this.code = code;
    this.wait = wait;
  }
}

/** Sets what happens when the session is over. */
export function onEnd(handler) {
  ended = handler;
}

async function send(method, path, body) {
  const headers = {};
  if (method !== "GET") headers["x-csrf-token"] = csrf;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "unreachable", "authd cannot be reached");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("retry-after")) || undefined;
  const error = new ApiError(
    response.status,
    answer.error,
    answer.message ?? `status ${response.status}`,
    wait,
  );
  if (response.status === 401 && path !== "/page/session") ended();
  throw error;
}

async function parsed(response) {
  return response.status === 204 ? null : response.json();
}

export const get = async (path) => parsed(await send("GET", path));
export const post = async (path, body) => parsed(await send("POST", path, body));
export const patch = async (path, body) => parsed(await send("PATCH", path, body));
export const remove = async (path) => parsed(await send("DELETE", path));

/** `GET` with the cursor of the next page: `[answer, cursor]`. */
export async function page(path) {
  const response = await send("GET", path);
  return [await response.json(), response.headers.get("next-cursor")];
}

/** The path with the parameters that are set. */
export function query(path, parameters) {
  const given = Object.entries(parameters).filter(
    ([, value]) => value !== undefined && value !== null && value !== "",
  );
  const text = new URLSearchParams(given).toString();
  return text ? `${path}?${text}` : path;
}

export const part = encodeURIComponent;

function begin(session) {
  csrf = session.csrf;
  return session;
}

/** The session of the cookie, or `null` if nobody is logged in. */
export async function current() {
  try {
    return begin(await get("/page/session"));
  } catch (error) {
    if (error.status === 401) return null;
    throw error;
  }
}

export const logIn = async (name, token) => begin(await post("/page/session", { name, token }));
export const logOut = () => remove("/page/session");
