// One photo of the visitor: its file, its job on the server, and its result.

import { Problem, events, getBlob, getJson, problemOf, removeJob, submit } from "./api.js";

const FINAL = new Set(["done", "failed", "cancelled"]);
const RECONNECT = [0.5, 1, 2, 4, 8]; // seconds; a gateway that starts again is back within them
const CAN_DECODE = 60e6; // pixels; a larger one is shown as the server's reduced picture

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    setTimeout(resolve, 1000 * seconds);
  });

/** Uploads go one after another, so that the first is under way early. */
let line = Promise.resolve();
function inLine(send) {
  const sent = line.then(send);
  line = sent.catch(() => {});
  return sent;
}

/**
 * A photo, and what becomes of it. It sends "change" whenever it has something new to show.
 *
 * state: "new", "waiting" (to be uploaded), "uploading", "queued", "running", "loading" (the result's pictures), "done",
 * "failed" or "cancelled". `result` is kept until the next restoration begins.
 */
export class Photo extends EventTarget {
  state = "new";
  /** The sentence about what went wrong, or null. */
  trouble = null;
  /** Something passing to say: a connection lost, a server too busy. */
  note = null;
  /** Whether it is of no use to send it. */
  isRefused = false;
  job = null;
  sent = 0;
  /** Why there is no picture: a sentence, or null as long as the browser is still looking. */
  unseen = null;
  /** {width, height} as the visitor sees it; null until it is known. */
  size = null;
  /** A URL of a picture that the browser shows, or null. */
  picture = null;
  /** {before, after: URLs of pictures, task, output, seconds} or null. */
  result = null;
  #turn = null;
  #started = 0;
  #look; // a promise: the browser has looked at the file
  #isAsked = false; // for the server's picture

  constructor(file, name) {
    super();
    this.file = file;
    this.name = name;
    this.#look = this.#lookAt();
  }

  get isBusy() {
    return ["waiting", "uploading", "queued", "running", "loading"].includes(this.state);
  }

  /** The share that is done, 0 to 1; null where it is not known. */
  get progress() {
    if (this.state === "uploading") return this.sent < 1 ? this.sent : null;
    if (this.state === "running" && this.job.tiles_done) return this.job.tiles_done / this.job.tiles;
    return null;
  }

  /** Show the file itself, if the browser can. */
  async #lookAt() {
    const url = URL.createObjectURL(this.file);
    const image = new Image();
    const isPicture = await new Promise((resolve) => {
      image.onload = () => resolve(true);
      image.onerror = () => resolve(false);
      image.src = url;
    });
    if (isPicture) this.size = { width: image.naturalWidth, height: image.naturalHeight };
    const isLarge = isPicture && image.naturalWidth * image.naturalHeight > CAN_DECODE;
    if (isPicture && !isLarge) this.#show(url);
    else URL.revokeObjectURL(url);
    const unseen = isLarge
      ? "This photo is too large to be shown before it is on the server."
      : "This browser cannot show such a file. The server may be able to read it.";
    this.#changed({ unseen });
  }

  #show(url) {
    if (this.picture) URL.revokeObjectURL(this.picture);
    this.picture = url;
  }

  #changed(values = {}) {
    Object.assign(this, values);
    this.dispatchEvent(new Event("change"));
  }

  /** Restore it by a task of the server; resolves when all is over, whatever came of it. */
  async restore(task) {
    this.cancel();
    const turn = (this.#turn = new AbortController());
    this.#forgetJob();
    this.#dropResult();
    this.#changed({ state: "waiting", trouble: null, note: null, sent: 0 });
    try {
      const started = await inLine(() => this.#upload(task, turn.signal));
      const job = await this.#follow(started, turn.signal);
      if (job.state === "failed") throw problemOf(job.error ?? {}, "The server could not restore this photo.");
      if (job.state === "done") await this.#load(job, task, turn.signal);
      else this.#changed({ state: job.state, note: null });
    } catch (error) {
      if (turn.signal.aborted) return;
      console.debug(error);
      this.#changed({ state: "failed", note: null, trouble: sentenceOf(error) });
    }
  }

  /** Say why it is not sent at all. */
  refuse(sentence) {
    this.#changed({ state: "failed", isRefused: true, trouble: sentence });
  }

  /** The result is gone from the server: it can be made again. */
  lose(sentence) {
    this.job = null;
    this.#dropResult();
    this.#changed({ state: "failed", trouble: sentence });
  }

  /** Stop what is under way; the server is told. */
  cancel() {
    if (!this.isBusy) return;
    this.#turn.abort();
    this.#forgetJob();
    this.#changed({ state: "cancelled", note: null, trouble: null });
  }

  /** Forget all of it, on the server too. */
  remove() {
    this.#turn?.abort();
    this.#forgetJob();
    this.#dropResult();
    this.#show(null);
    this.state = "cancelled";
  }

  #forgetJob() {
    if (this.job) removeJob(this.job.id);
    this.job = null;
  }

  #dropResult() {
    if (!this.result) return;
    URL.revokeObjectURL(this.result.before);
    URL.revokeObjectURL(this.result.after);
    this.result = null;
  }

  async #upload(task, signal) {
    this.#started = performance.now();
    for (;;) {
      signal.throwIfAborted();
      this.#changed({ state: "uploading", sent: 0, note: null });
      try {
        const onSent = (sent) => this.#changed({ sent });
        const job = await submit(this.file, this.name, { task: task.name }, { signal, onSent });
        if (signal.aborted) removeJob(job.id); // it was taken just when the visitor cancelled
        signal.throwIfAborted();
        this.#changed({ job, state: job.state, size: job.input ?? this.size });
        return job;
      } catch (error) {
        if (![429, 503].includes(error.status) || !error.wait) throw error;
        this.#changed({ state: "waiting", note: `${error.message} Trying again in ${Math.ceil(error.wait)} s.` });
        await pause(error.wait, signal);
      }
    }
  }

  /** The job in its final state; a lost connection is taken up again. */
  async #follow(job, signal) {
    let losses = 0;
    while (!FINAL.has(job.state)) {
      try {
        for await (job of events(job.id, signal)) {
          losses = 0;
          this.#changed({ job, note: null, size: job.input ?? this.size });
          if (!FINAL.has(job.state)) this.#changed({ state: job.state });
          this.#lookAgain(job, signal);
        }
        if (FINAL.has(job.state)) break;
        await pause(RECONNECT[0], signal); // something between cut the stream
        job = await getJson(`v1/jobs/${job.id}`, signal);
      } catch (error) {
        if (!error.isAway || losses === RECONNECT.length) throw error;
        this.#changed({ note: "The connection is lost; looking for the server again." });
        await pause(RECONNECT[losses++], signal);
      }
    }
    return job;
  }

  /** The server's picture of a photo that the browser cannot show. */
  async #lookAgain(job, signal) {
    await this.#look;
    if (this.picture || this.#isAsked || !job.input || job.state === "failed") return;
    this.#isAsked = true;
    const blob = await getBlob(`v1/jobs/${job.id}/before`, signal).catch(() => null);
    if (!blob || this.picture) return;
    this.#show(URL.createObjectURL(blob));
    this.#changed();
  }

  async #load(job, task, signal) {
    this.#changed({ job, state: "loading", note: null });
    const seconds = (performance.now() - this.#started) / 1000;
    const [before, after] = await Promise.all(
      ["before", "after"].map(async (which) => URL.createObjectURL(await getBlob(`v1/jobs/${job.id}/${which}`, signal))),
    );
    this.result = { before, after, task, output: job.output, seconds };
    this.#changed({ state: "done", size: job.input ?? this.size });
  }
}

const sentenceOf = (error) =>
  error instanceof Problem ? error.message : "Something unexpected happened on this page. Try again.";
