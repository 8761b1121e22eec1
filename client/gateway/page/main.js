// The page: photos come in, a task is chosen, the server restores, the stage compares.

import { getFile, getJson, onKeyAsked } from "./api.js";
import { isDueFor, renderBar, showFormats } from "./bar.js";
import { takePhotos } from "./intake.js";
import { askForKey } from "./key.js";
import { Photo } from "./photo.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";
import { chosenTask, showTasks } from "./tasks.js";
import { bytes, megapixels, privacy } from "./words.js";

const RETRY = 3000; // ms, until the server is asked again what it can do

const element = (id) => document.getElementById(id);
const form = element("tasks");
const stage = new Stage();
const strip = new Strip({ select, remove });

let server = { tasks: [], formats: [], max_upload_bytes: Infinity, max_pixels: Infinity };
let photos = [];
let current = null;
let onStage = null; // what the stage shows, so that it is not shown anew
let staged = Promise.resolve(); // the stage has loaded it
let isAsked = false; // for a rendering in the next frame

const task = () => chosenTask(form, server.tasks);
/** Photos that have no result yet: what "all" means. */
const dueOnes = () => photos.filter((photo) => !photo.result && isDueFor(photo, task()));

async function start() {
  onKeyAsked(askForKey);
  takePhotos(add, (error) => announce(error.message));
  form.addEventListener("change", render);
  element("restore").addEventListener("click", () => restore([current]));
  element("restore-all").addEventListener("click", () => restore(dueOnes()));
  element("cancel").addEventListener("click", () => current.cancel());
  element("cancel-all").addEventListener("click", () => photos.forEach((photo) => photo.cancel()));
  element("remove").addEventListener("click", () => remove(current));
  element("download").addEventListener("click", () => download([current]));
  element("download-all").addEventListener("click", () => download(photos.filter((photo) => photo.result)));
  await learn();
}

/** Ask the server what it can do, until it answers. */
async function learn() {
  try {
    server = await getJson("v1/tasks");
    showTasks(form, server.tasks);
    showFormats(server.formats);
    for (const line of document.querySelectorAll("[data-privacy]")) line.textContent = privacy(server.retention_s);
    render();
  } catch (error) {
    element("tasks-note").textContent = error.message;
    if (error.status !== 401) setTimeout(learn, RETRY);
  }
}

/** Take photos in; the first of them is shown. */
function add(files) {
  const added = files.map(({ file, name }) => new Photo(file, name));
  for (const photo of added) {
    if (photo.file.size > server.max_upload_bytes) {
      photo.refuse(tooLarge(photo, bytes(photo.file.size), bytes(server.max_upload_bytes)));
    }
    photo.addEventListener("change", () => {
      if (photo === current) announceState(photo);
      renderSoon();
    });
  }
  photos = [...photos, ...added];
  select(added[0]);
}

const tooLarge = (photo, has, most) => `${photo.name} has ${has}; this server takes at most ${most}.`;
const pixelsOf = ({ size }) => (size ? size.width * size.height : 0);

function select(photo) {
  current = photo;
  render();
  bringStageIntoSight();
}

function remove(photo) {
  const index = photos.indexOf(photo);
  photo.remove();
  photos = photos.filter((other) => other !== photo);
  if (photo === current) current = photos[Math.min(index, photos.length - 1)] ?? null;
  render();
  if (!current) document.querySelector("[data-choose]").focus();
}

function restore(wanted) {
  const chosen = task();
  for (const photo of wanted) {
    const pixels = pixelsOf(photo);
    if (pixels <= server.max_pixels) photo.restore(chosen);
    else photo.refuse(tooLarge(photo, megapixels(pixels), megapixels(server.max_pixels)));
  }
  bringStageIntoSight();
}

/** On a telephone it may be above what is seen. */
function bringStageIntoSight() {
  if (element("stage").getBoundingClientRect().top < -50) element("stage").scrollIntoView();
}

/** Save results in the chosen format, one after another. */
async function download(wanted) {
  const format = element("format").value;
  const button = element("download");
  button.disabled = true;
  for (const photo of wanted) {
    try {
      const query = format === "same" ? "" : `?format=${encodeURIComponent(format)}`;
      const { name, blob } = await getFile(`v1/jobs/${photo.job.id}/result${query}`);
      save(blob, name ?? photo.name);
      photo.trouble = null;
      announce(`${name ?? photo.name} is downloaded.`);
    } catch (error) {
      if ([404, 410].includes(error.status)) photo.lose(error.message);
      else photo.trouble = error.message;
    }
  }
  button.disabled = false;
  render();
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function renderSoon() {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    render();
  });
}

function render() {
  const isEmpty = !current;
  element("empty").hidden = !isEmpty;
  element("view").hidden = isEmpty;
  document.body.classList.toggle("empty", isEmpty);
  const isFocusLost = renderBar(current, { task: task(), due: dueOnes().length });
  strip.render(photos, current);
  element("cancel-all").hidden = photos.filter((photo) => photo.isBusy).length < 2;
  element("download-all").hidden = photos.filter((photo) => photo.result).length < 2;
  renderStage();
  document.title = titleOf(current);
  if (isFocusLost) focusNext(current);
}

/** A button that goes must not send the keyboard back to the top of the page. */
async function focusNext(photo) {
  await staged;
  element(photo.isBusy ? "cancel" : photo.result ? "divider" : "restore").focus({ preventScroll: true });
}

function renderStage() {
  const pictures = current?.result ?? (current?.picture && { before: current.picture });
  const unseen = element("unseen");
  unseen.hidden = !current?.unseen || Boolean(pictures);
  unseen.textContent = current?.trouble ? "There is no picture to show." : (current?.unseen ?? "");
  element("add").hidden = !current;
  element("zooms").hidden = !pictures;
  const shown = pictures ? [pictures.before, pictures.after].join() : "";
  if (shown === onStage) return;
  onStage = shown;
  if (pictures) staged = stage.show({ ...pictures, name: current.name });
  else stage.clear();
}

function titleOf(photo) {
  const share = photo?.progress ?? null;
  return share === null ? "ipt-triton: photo restoration" : `${Math.round(100 * share)} % · ipt-triton`;
}

let announced = "";
/** Say a change of state, and not each tile, to those who listen. */
function announceState(photo) {
  const words = {
    uploading: `Uploading ${photo.name}.`,
    running: `Restoring ${photo.name}, ${25 * Math.floor(4 * (photo.progress ?? 0))} % done.`,
    done: `${photo.name} is restored.`,
    cancelled: `Restoring ${photo.name} is cancelled.`,
  };
  const sentence = words[photo.state];
  if (sentence && sentence !== announced) announce(sentence);
}

function announce(sentence) {
  announced = sentence;
  element("announcer").textContent = sentence;
}

start();
