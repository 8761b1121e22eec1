// The bar of the current photo: what is said of it, its progress, and what can be done with it.

import { formatName, statusOf } from "./words.js";

const element = (id) => document.getElementById(id);

/** Put the formats to download in into their list. */
export function showFormats(formats) {
  element("format").replaceChildren(...formats.map((format) => new Option(formatName(format), format)));
}

/**
 * Show the bar of a photo. Answers whether the button that had the focus is gone.
 *
 * @param {Photo | null} photo
 * @param {{task: object | undefined, due: number}} state the chosen task, and how many photos have no result yet
 */
export function renderBar(photo, { task, due }) {
  element("bar").hidden = !photo;
  if (!photo) return false;
  const focused = document.activeElement;
  say("name", photo.name);
  say("status", photo.trouble ? "" : statusOf(photo));
  say("trouble", photo.trouble ?? "");
  const progress = element("progress");
  progress.hidden = !photo.isBusy;
  if (photo.progress === null) progress.removeAttribute("value");
  else progress.value = photo.progress;

  const isDue = isDueFor(photo, task);
  element("remove").hidden = photo.isBusy;
  element("cancel").hidden = !photo.isBusy;
  element("restore").hidden = !isDue;
  element("restore").textContent = photo.state === "failed" ? "Try again" : "Restore";
  element("restore-all").hidden = due < 2;
  element("restore-all").textContent = `Restore ${due} photos`;
  element("save").hidden = !photo.result;
  element("download").className = isDue ? "plain" : "primary";
  element("bar").dataset.state = photo.state;
  return Boolean(focused?.closest("#bar")) && !focused.checkVisibility();
}

/** Text is not set anew where it is the same: screen readers would read it again. */
function say(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

/** Whether the task can still be done for a photo. */
export const isDueFor = (photo, task) =>
  Boolean(task) && !photo.isBusy && !photo.isRefused && photo.result?.task.name !== task.name;
