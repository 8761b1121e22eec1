// The list of photos, where there are several.

import { shortStatusOf } from "./words.js";

export class Strip {
  #root = document.getElementById("strip");
  #list = this.#root.querySelector("ul");
  #items = new Map(); // photo -> its <li>
  #current = null;
  #select;
  #remove;

  /** @param {{select: (photo) => void, remove: (photo) => void}} calls */
  constructor({ select, remove }) {
    this.#select = select;
    this.#remove = remove;
  }

  /** Show these photos, the current one marked; hidden unless there are several. */
  render(photos, current) {
    this.#root.hidden = photos.length < 2;
    for (const [photo, item] of this.#items) {
      if (photos.includes(photo)) continue;
      item.remove();
      this.#items.delete(photo);
    }
    for (const photo of photos) {
      if (!this.#items.has(photo)) {
        this.#items.set(photo, this.#item(photo));
        this.#list.append(this.#items.get(photo));
      }
      this.#fill(this.#items.get(photo), photo, photo === current);
    }
    if (current !== this.#current) this.#bringIntoSight((this.#current = current));
  }

  #bringIntoSight(photo) {
    const item = this.#items.get(photo);
    if (item) this.#list.scrollLeft = item.offsetLeft - (this.#list.clientWidth - item.offsetWidth) / 2;
  }

  #item(photo) {
    const item = document.createElement("li");
    item.innerHTML = `
      <button type="button" class="card">
        <span class="picture"><img alt="" hidden></span>
        <span class="name"></span>
        <span class="state muted"></span>
        <progress max="1" aria-hidden="true" hidden></progress>
      </button>
      <button type="button" class="cross">×</button>`;
    const [card, cross] = item.querySelectorAll("button");
    item.querySelector(".name").textContent = photo.name;
    cross.setAttribute("aria-label", `Remove ${photo.name}`);
    card.addEventListener("click", () => this.#select(photo));
    cross.addEventListener("click", () => this.#remove(photo));
    return item;
  }

  #fill(item, photo, isCurrent) {
    const [card] = item.children;
    if (isCurrent) card.setAttribute("aria-current", "true");
    else card.removeAttribute("aria-current");
    item.dataset.state = photo.state;
    item.querySelector(".state").textContent = shortStatusOf(photo);
    const image = item.querySelector("img");
    const url = photo.result?.after ?? photo.picture;
    if (url && image.getAttribute("src") !== url) image.src = url;
    image.hidden = !url;
    const progress = item.querySelector("progress");
    progress.hidden = photo.progress === null;
    progress.value = photo.progress ?? 0;
  }
}
