// The gateway's HTTP API: requests, problems in a sentence, uploads with progress, events of a job.

/** An answer that is an error, or no answer; its message is a sentence for people. */
export class Problem extends Error {
  /**
   * @param {string} sentence
   * @param {number} status of HTTP; 0 where there was no answer
   * @param {number} wait seconds after which a second try makes sense; 0 where none does
   */
  constructor(sentence, status = 0, wait = 0) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }

  /** Whether nothing answered: another try may reach the server again. */
  get isAway() {
    return this.status === 0;
  }
}

const AWAY = "The server does not answer. Look whether it runs and whether you are online, then try again.";

/** A Problem of what a `problem+json` says; `otherwise` is the sentence where it says nothing. */
export function problemOf({ detail, title, status, retry_after_s: wait }, otherwise) {
  return new Problem(sentence(detail || title || otherwise), status, wait);
}

/** A message as a sentence: with a capital, unless it begins with a name, and a full stop. */
function sentence(text) {
  const begun = /^[a-z]+[ ,]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** The Problem of an answer. */
function refusal(status, text, retryAfter) {
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    // A proxy's page, or nothing.
  }
  const wait = Number(said.retry_after_s ?? retryAfter) || 0;
  return problemOf({ ...said, status, retry_after_s: wait }, `The server refused, HTTP ${status}`);
}

// Below the address of the page, so that a proxy may put all of it under a path of its own.
const at = (path) => path.replace(/^\//, "");

const KEY = "api-key";
let key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // Storage may be closed; the key is then asked for once a page.
}
const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

let askForKey = async () => null;
let asking = null;

/** How a key is asked for: an async function of the server's sentence, answering the key or null. */
export const onKeyAsked = (ask) => (askForKey = ask);

/** Ask once, however many requests were refused meanwhile; false if the visitor gave none. */
async function gotKey(refused, used) {
  if (key !== used) return true; // another request has brought one
  asking ??= askForKey(refused.message).finally(() => (asking = null));
  const given = await asking;
  if (!given) return false;
  key = given;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // As above.
  }
  return true;
}

/** Run `send` again with a key for as long as the server asks for one and the visitor gives one. */
async function withKey(send) {
  for (;;) {
    const used = key;
    try {
      return await send();
    } catch (error) {
      if (error.status !== 401 || !(await gotKey(error, used))) throw error;
    }
  }
}

/** A request; throws a Problem, or an AbortError. */
function request(path, options = {}) {
  return withKey(async () => {
    let response;
    try {
      response = await fetch(at(path), { ...options, headers: headers() });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem(AWAY);
    }
    if (response.ok) return response;
    throw refusal(response.status, await response.text().catch(() => ""), response.headers.get("Retry-After"));
  });
}

/** What stands in a response, where the line may break while it is read. */
async function body(response, kind) {
  try {
    return await response[kind]();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(AWAY);
  }
}

export const getJson = async (path, signal) => body(await request(path, { signal }), "json");
export const getBlob = async (path, signal) => body(await request(path, { signal }), "blob");

/** A file of the server, with the name that it gives it. */
export async function getFile(path) {
  const response = await request(path);
  const disposition = response.headers.get("Content-Disposition") ?? "";
  const encoded = /filename\*=UTF-8''([^;]+)/i.exec(disposition);
  const plain = /filename="?([^";]+)"?/i.exec(disposition);
  const name = encoded ? decodeURIComponent(encoded[1]) : plain?.[1];
  return { name, blob: await body(response, "blob") };
}

/** Cancel or remove a job; there is nothing to say if that fails, since jobs expire. */
export const removeJob = (id) => request(`v1/jobs/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});

/** Send a form, telling `onSent` the share that is sent, 0 to 1. (fetch does not tell it.) */
function upload(path, form, { signal, onSent }) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", at(path));
    for (const [header, value] of Object.entries(headers())) sending.setRequestHeader(header, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    sending.onload = () => resolve(sending);
    sending.onerror = () => reject(new Problem(AWAY));
    sending.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => sending.abort(), { once: true });
    sending.send(form);
  });
}

/** Upload a photo as a job; answers the job. */
export function submit(file, name, options, { signal, onSent }) {
  return withKey(async () => {
    signal.throwIfAborted();
    const form = new FormData();
    for (const [option, value] of Object.entries(options)) form.append(option, value);
    form.append("image", file, name);
    const sent = await upload("v1/jobs", form, { signal, onSent });
    if (sent.status >= 300) throw refusal(sent.status, sent.responseText, sent.getResponseHeader("Retry-After"));
    return JSON.parse(sent.responseText);
  });
}

/** The states of a job as they come, by server-sent events. (EventSource takes no headers, so they are read here.) */
export async function* events(id, signal) {
  const response = await request(`v1/jobs/${id}/events`, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value.replaceAll("\r", "");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(AWAY);
  } finally {
    reader.cancel().catch(() => {});
  }
}
