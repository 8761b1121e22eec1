// How photos come in: chosen, dropped, pasted, or a sample of the server.

import { getBlob, getJson } from "./api.js";

/** Call `take` with a list of {file, name} whenever the visitor brings photos, and `fail` with what went wrong. */
export function takePhotos(take, fail) {
  const takeFiles = (files) => {
    const photos = [...files].map((file) => ({ file, name: file.name || "photo.png" }));
    if (photos.length) take(photos);
  };
  const input = document.getElementById("files");
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => input.click());
  }
  input.addEventListener("change", () => {
    takeFiles(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.target.matches?.("input")) return;
    const named = [...event.clipboardData.files].map((file) => ({ file, name: pastedName(file) }));
    if (named.length) take(named);
  });
  takeDrops(takeFiles);
  showSamples(take, fail);
}

/** What is copied from a page or a screen is always called image.png. */
const pastedName = (file) => (/^image\.\w+$/.test(file.name) ? file.name.replace("image", "pasted") : file.name);

function takeDrops(takeFiles) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (on) => document.body.classList.toggle("dropping", on);
  let depth = 0; // dragenter and dragleave come for every element that is crossed
  document.addEventListener("dragenter", (event) => hasFiles(event) && mark(++depth > 0));
  document.addEventListener("dragleave", (event) => hasFiles(event) && mark(--depth > 0));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark((depth = 0) > 0);
    takeFiles(event.dataTransfer.files);
  });
}

async function showSamples(take, fail) {
  const root = document.getElementById("samples");
  const { samples } = await getJson("v1/samples").catch(() => ({ samples: [] }));
  root.hidden = !samples.length;
  root.querySelector("ul").replaceChildren(...samples.map((sample) => sampleItem(sample, take, fail)));
}

function sampleItem({ name, url }, take, fail) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `Try the photo “${name}”`);
  const image = document.createElement("img");
  image.alt = "";
  image.src = url.replace(/^\//, "");
  button.append(image);
  button.addEventListener("click", async () => {
    try {
      take([{ file: await getBlob(url), name: url.split("/").pop() }]);
    } catch (error) {
      fail(error);
    }
  });
  item.append(button);
  return item;
}
