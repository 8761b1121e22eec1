// Numbers and states in words.

/** A count with its noun: "1 photo", "3 photos". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Bytes as people say them: "640 KB", "12.5 MB". */
export function bytes(number) {
  if (number < 1e6) return `${Math.max(1, Math.round(number / 1e3))} KB`;
  if (number < 1e9) return `${(number / 1e6).toFixed(1)} MB`;
  return `${(number / 1e9).toFixed(1)} GB`;
}

/** Pixels of a photo: "12.3 megapixels". */
export const megapixels = (number) => count(Number((number / 1e6).toFixed(1)), "megapixel");

/** A waiting time that is an estimate: "about 40 s". */
export function estimate(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `about ${seconds < 20 ? Math.round(seconds) : Math.round(seconds / 5) * 5} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${Math.round(seconds / 3600)} h`;
}

/** A time that was measured: "0.8 s", "42 s", "3 min 5 s". */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** How long files are kept: "an hour", "30 minutes". */
export function span(seconds) {
  if (seconds < 90) return count(Math.round(seconds), "second");
  if (seconds < 5400) return seconds === 3600 ? "an hour" : count(Math.round(seconds / 60), "minute");
  return seconds < 2 * 86400 ? count(Math.round(seconds / 3600), "hour") : count(Math.round(seconds / 86400), "day");
}

/** What becomes of the photos, in one line. */
export const privacy = (seconds) =>
  seconds
    ? `Photos stay on this server alone and are deleted after ${span(seconds)}, or at once when you remove them.`
    : "Photos stay on this server alone and are deleted when you remove them.";

export const sides = ({ width, height }) => `${width} × ${height}`;

const FORMATS = { same: "Same format", jpg: "JPEG", webp: "WebP" };

/** A format's name for people. */
export const formatName = (format) => FORMATS[format] ?? format.toUpperCase();

const SHOWN = 8192; // the longest side of the server's pictures

/** What is to be said of a photo in its state. */
export function statusOf(photo) {
  if (photo.note) return photo.note;
  const { state, job, result } = photo;
  if (state === "waiting") return "Waiting for the photos before it";
  if (state === "uploading") return photo.sent < 1 ? `Uploading, ${Math.round(100 * photo.sent)} %` : "Being read";
  if (state === "queued") return job.position ? `Waiting, ${count(job.position, "photo")} ahead` : "Next in line";
  if (state === "running") return job.tiles ? `${tilesOf(job)}${leftOf(job)}` : "Starting";
  if (state === "loading") return "Fetching the result";
  if (state === "cancelled") return "Cancelled";
  if (state === "done") {
    const { output, task, seconds } = result;
    const reduced = Math.max(output.width, output.height) > SHOWN ? "; shown reduced, the download is whole" : "";
    const [before, after] = [sides(photo.size), sides(output)];
    return `${before === after ? after : `${before} → ${after}`}, ${task.title}, ${duration(seconds)}${reduced}`;
  }
  return [photo.size && sides(photo.size), bytes(photo.file.size)].filter(Boolean).join(", ");
}

/** The same in a word or two, for a list. */
export function shortStatusOf(photo) {
  const short = { new: "Ready", failed: "Failed", done: photo.result?.task.title, loading: "Fetching", uploading: "Uploading" };
  if (photo.state === "running" && photo.progress !== null) return `${Math.round(100 * photo.progress)} %`;
  if (photo.state === "queued") return photo.job.position ? `${photo.job.position} ahead` : "Next";
  return short[photo.state] ?? (photo.state === "cancelled" ? "Cancelled" : "Waiting");
}

const tilesOf = ({ tiles_done: done, tiles }) => `${done} of ${count(tiles, "tile")}`;
const leftOf = ({ eta_s: eta }) => (eta === null || eta === undefined ? "" : `, ${estimate(eta)} left`);
