// The stage: a photo, or the photo before and after with a divider between, as far as one likes enlarged.

import { Loupe } from "./loupe.js";

const MOST = 8; // device pixels a pixel of the picture
const MOST_FIT = 4; // CSS pixels a pixel: a small photo fills no wall
const STEP = 1.25; // of plus and minus

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const element = (id) => document.getElementById(id);

/** Keys that move: the direction of each, [x, y]. */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Stage {
  #view = element("view");
  #before = element("before");
  #after = element("after");
  #divider = element("divider");
  #loupe = new Loupe(element("loupe"));
  #size = null; // {width, height} of the picture, in its pixels
  #isCompared = false;
  #split = 0.5; // where the divider stands in the visible part of the picture
  #scale = 1; // CSS pixels a pixel of the picture
  #isFit = true;
  #x = 0; // the picture's corner in the view, CSS pixels
  #y = 0;
  #pointers = new Map();
  #held = null; // what the pointer moves: "divider", "picture" or "loupe"
  #wanted = 0; // counts the pictures asked for, so that a late one is not shown

  constructor() {
    new ResizeObserver(() => this.#place()).observe(this.#view);
    element("fit").addEventListener("click", () => this.fit());
    element("full").addEventListener("click", () => this.zoom(this.#full));
    element("magnify").addEventListener("click", () => this.#magnify(this.#loupe.isHidden));
    this.#listenToPointers();
    this.#view.addEventListener("keydown", (event) => this.#key(event));
    this.#divider.addEventListener("keydown", (event) => this.#dividerKey(event));
  }

  /**
   * Show a photo or a comparison.
   *
   * @param {{before: string, after?: string, name: string}} pictures URLs; without `after` the photo alone
   */
  async show({ before, after, name }) {
    const wanted = ++this.#wanted;
    const [old, restored] = await Promise.all([before, after].map((url) => url && load(url)));
    if (wanted !== this.#wanted) return;
    this.#isCompared = Boolean(after);
    this.#before.src = before;
    this.#before.alt = after ? `${name} before restoring` : name;
    if (after) this.#after.src = after;
    else this.#after.removeAttribute("src");
    this.#after.alt = after ? `${name} after restoring` : "";
    const shown = restored ?? old;
    this.#size = { width: shown.naturalWidth, height: shown.naturalHeight };
    this.#split = 0.5;
    this.#isFit = true;
    for (const part of [this.#after, this.#divider, element("tag-before"), element("tag-after")]) part.hidden = !after;
    this.#before.hidden = false;
    this.#loupe.show(before, after);
    this.#place();
  }

  /** Show nothing. */
  clear() {
    this.#wanted++;
    this.#size = null;
    this.#isCompared = false;
    for (const part of [this.#before, this.#after, this.#divider, element("tag-before"), element("tag-after")]) {
      part.hidden = true;
    }
    this.#magnify(false);
    for (const image of [this.#before, this.#after]) image.removeAttribute("src");
    this.#place();
  }

  /** All of the picture. */
  fit() {
    this.#isFit = true;
    this.#place();
  }

  /** Enlarge to `scale` CSS pixels a pixel; the point (x, y) of the view, by default its middle, stays where it is. */
  zoom(scale, x = this.#view.clientWidth / 2, y = this.#view.clientHeight / 2) {
    if (!this.#size) return;
    const least = Math.min(this.#fitScale, this.#full);
    const next = clamp(scale, least, Math.max(MOST * this.#full, this.#fitScale));
    this.#x = x - ((x - this.#x) * next) / this.#scale;
    this.#y = y - ((y - this.#y) * next) / this.#scale;
    this.#scale = next;
    this.#isFit = false;
    this.#place();
  }

  /** The scale of 100 %: a pixel of the picture is a pixel of the screen. */
  get #full() {
    return 1 / devicePixelRatio;
  }

  get #fitScale() {
    const { clientWidth, clientHeight } = this.#view;
    const room = Math.min(clientWidth / this.#size.width, clientHeight / this.#size.height);
    return clamp(room, 0.001, MOST_FIT);
  }

  /** The part of the picture that is seen, [left, right] in the view. */
  get #seen() {
    return [Math.max(0, this.#x), Math.min(this.#view.clientWidth, this.#x + this.#size.width * this.#scale)];
  }

  /** Whether more of the picture is hidden than shown by `fit`. */
  get #isEnlarged() {
    return this.#scale > this.#fitScale * 1.001;
  }

  #place() {
    element("fit").setAttribute("aria-pressed", this.#isFit);
    const view = this.#view;
    if (!this.#size || !view.clientWidth) {
      element("percent").textContent = "";
      return;
    }
    if (this.#isFit) this.#scale = this.#fitScale;
    const width = this.#size.width * this.#scale;
    const height = this.#size.height * this.#scale;
    this.#x = held(this.#x, width, view.clientWidth);
    this.#y = held(this.#y, height, view.clientHeight);
    for (const image of [this.#before, this.#after]) {
      image.style.width = `${width}px`;
      image.style.height = `${height}px`;
      image.style.transform = `translate(${this.#x}px, ${this.#y}px)`;
    }
    const isFull = Math.abs(this.#scale / this.#full - 1) < 0.001;
    element("full").setAttribute("aria-pressed", isFull && !this.#isFit);
    element("percent").textContent = isFull ? "" : `${Math.round((100 * this.#scale) / this.#full)} %`;
    view.dataset.moves = this.#isEnlarged ? "picture" : this.#isCompared ? "divider" : "nothing";
    this.#placeDivider(width, height);
    this.#loupe.place({ x: this.#x, y: this.#y, width, height, scale: this.#scale, full: this.#full });
  }

  #placeDivider(width, height) {
    const [left, right] = this.#seen;
    const top = Math.max(0, this.#y);
    const bottom = Math.min(this.#view.clientHeight, this.#y + height);
    const x = left + this.#split * (right - left);
    const share = Math.round(100 * this.#split);
    this.#divider.style.transform = `translate(${x}px, ${top}px)`;
    this.#divider.style.height = `${bottom - top}px`;
    this.#divider.setAttribute("aria-valuenow", share);
    this.#divider.setAttribute("aria-valuetext", `${share} % before, ${100 - share} % after`);
    this.#before.style.clipPath = this.#isCompared ? `inset(0 ${width - (x - this.#x)}px 0 0)` : "";
    this.#after.style.clipPath = `inset(0 0 0 ${x - this.#x}px)`;
    // A label gives way where its side has no room for it.
    element("tag-before").classList.toggle("away", x - left < 90);
    element("tag-after").classList.toggle("away", right - x < 90);
    element("tag-before").style.left = `${left}px`;
    element("tag-after").style.right = `${this.#view.clientWidth - right}px`;
    for (const tag of ["tag-before", "tag-after"]) element(tag).style.bottom = `${this.#view.clientHeight - bottom}px`;
  }

  #moveDivider(x) {
    const [left, right] = this.#seen;
    this.#split = clamp((x - left) / (right - left || 1), 0, 1);
    this.#place();
  }

  #magnify(on) {
    this.#loupe.isHidden = !on;
    element("magnify").setAttribute("aria-pressed", on);
    this.#view.classList.toggle("magnified", on);
    if (on) this.#place();
  }

  #listenToPointers() {
    const view = this.#view;
    const spot = (event) => {
      const box = view.getBoundingClientRect();
      return { x: event.clientX - box.left - view.clientLeft, y: event.clientY - box.top - view.clientTop };
    };

    view.addEventListener("pointerdown", (event) => {
      if (!this.#size || event.button > 0) return;
      const point = spot(event);
      view.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, point);
      if (event.target.closest("#divider")) this.#held = "divider";
      else if (!this.#loupe.isHidden) this.#held = "loupe";
      else if (this.#isEnlarged) this.#held = "picture";
      else this.#held = this.#isCompared ? "divider" : null;
      if (this.#held === "divider") this.#moveDivider(point.x);
      if (this.#held === "loupe") this.#loupe.moveTo(point.x, point.y);
    });

    view.addEventListener("pointermove", (event) => {
      const point = spot(event);
      const last = this.#pointers.get(event.pointerId);
      if (!last) {
        if (event.pointerType === "mouse") this.#loupe.moveTo(point.x, point.y);
        return;
      }
      if (this.#pointers.size === 2) this.#pinch(event.pointerId, point);
      else if (this.#held === "divider") this.#moveDivider(point.x);
      else if (this.#held === "loupe") this.#loupe.moveTo(point.x, point.y);
      else if (this.#held === "picture") this.#pan(point.x - last.x, point.y - last.y);
      this.#pointers.set(event.pointerId, point);
    });

    for (const end of ["pointerup", "pointercancel"]) {
      view.addEventListener(end, (event) => {
        this.#pointers.delete(event.pointerId);
        if (!this.#pointers.size) this.#held = null;
        else this.#held = this.#isEnlarged ? "picture" : null;
      });
    }

    view.addEventListener("dblclick", (event) => {
      if (event.target.closest("#divider") || !this.#size) return;
      const { x, y } = spot(event);
      if (this.#isFit) this.zoom(this.#fitScale < this.#full ? this.#full : 2 * this.#fitScale, x, y);
      else this.fit();
    });

    view.addEventListener(
      "wheel",
      (event) => {
        if (!this.#size) return;
        const { x, y } = spot(event);
        if (event.ctrlKey || event.metaKey) this.zoom(this.#scale * Math.exp(-event.deltaY / 300), x, y);
        else if (this.#isEnlarged) this.#pan(-event.deltaX, -event.deltaY);
        else return;
        event.preventDefault();
      },
      { passive: false },
    );
  }

  #pinch(id, point) {
    const last = this.#pointers.get(id);
    const [, other] = [...this.#pointers].find(([key]) => key !== id);
    const distance = (a) => Math.hypot(a.x - other.x, a.y - other.y) || 1;
    this.zoom((this.#scale * distance(point)) / distance(last), (point.x + other.x) / 2, (point.y + other.y) / 2);
    this.#pan((point.x - last.x) / 2, (point.y - last.y) / 2);
  }

  #pan(x, y) {
    this.#x += x;
    this.#y += y;
    this.#place();
  }

  #key(event) {
    if (event.target !== this.#view || !this.#size || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "+" || event.key === "=") this.zoom(this.#scale * STEP);
    else if (event.key === "-") this.zoom(this.#scale / STEP);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.zoom(this.#full);
    else if (event.key in ARROWS) this.#arrow(...ARROWS[event.key], event.shiftKey ? 4 : 1);
    else return;
    event.preventDefault();
  }

  #arrow(x, y, times) {
    const step = 0.06 * times * Math.min(this.#view.clientWidth, this.#view.clientHeight);
    if (!this.#loupe.isHidden) this.#loupe.moveBy(x * step * 0.5, y * step * 0.5);
    else this.#pan(-x * step, -y * step);
  }

  #dividerKey(event) {
    const steps = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1 };
    if (event.key in steps) this.#split += steps[event.key] * (event.shiftKey ? 5 : 1);
    else if (event.key === "Home") this.#split = 0;
    else if (event.key === "End") this.#split = 1;
    else return;
    event.preventDefault();
    this.#split = clamp(this.#split, 0, 1);
    this.#place();
  }
}

/** A picture's corner so that it fills the view, or stands in the middle where it is smaller. */
const held = (corner, length, room) => (length <= room ? (room - length) / 2 : clamp(corner, room - length, 0));

function load(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image, () => image);
}
