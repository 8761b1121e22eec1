// The loupe: two lenses side by side that show one spot of the picture before and after, enlarged.

const ROOM = 18; // CSS pixels between the spot and the lenses

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Loupe {
  #root;
  #lenses;
  #spot;
  #figures;
  #geometry = null; // {x, y, width, height, scale, full} of the picture in the view
  #at = [0.5, 0.5]; // the spot, as shares of the picture's width and height

  constructor(root) {
    this.#root = root;
    this.#lenses = root.querySelector(".lenses");
    this.#spot = root.querySelector(".spot");
    this.#figures = [...root.querySelectorAll("figure")];
  }

  get isHidden() {
    return this.#root.hidden;
  }

  set isHidden(hidden) {
    this.#root.hidden = hidden;
  }

  /** The pictures to look at; without `after` there is one lens. */
  show(before, after) {
    [before, after].forEach((url, index) => {
      const image = this.#figures[index].querySelector("img");
      if (url) image.src = url;
      else image.removeAttribute("src");
    });
    this.#figures[0].querySelector("figcaption").hidden = !after;
    this.#figures[1].hidden = !after;
    this.#at = [0.5, 0.5];
  }

  place(geometry) {
    this.#geometry = geometry;
    this.#draw();
  }

  moveTo(x, y) {
    const { x: left, y: top, width, height } = this.#geometry ?? {};
    this.#at = [clamp((x - left) / width, 0, 1), clamp((y - top) / height, 0, 1)];
    this.#draw();
  }

  moveBy(x, y) {
    const { x: left, y: top, width, height } = this.#geometry;
    this.moveTo(left + this.#at[0] * width + x, top + this.#at[1] * height + y);
  }

  #draw() {
    if (this.isHidden || !this.#geometry) return;
    const { x, y, width, height, scale, full } = this.#geometry;
    const times = Math.max(full, 2 * scale) / scale;
    const side = this.#figures[0].querySelector(".lens").clientWidth;
    const spot = side / times;
    const [left, top] = [x + this.#at[0] * width, y + this.#at[1] * height];
    for (const figure of this.#figures) {
      const image = figure.querySelector("img");
      image.style.width = `${width * times}px`;
      image.style.height = `${height * times}px`;
      image.style.transform =
        `translate(${side / 2 - this.#at[0] * width * times}px, ${side / 2 - this.#at[1] * height * times}px)`;
    }
    this.#spot.style.width = this.#spot.style.height = `${spot}px`;
    this.#spot.style.transform = `translate(${left - spot / 2}px, ${top - spot / 2}px)`;

    const { clientWidth, clientHeight } = this.#root;
    const { offsetWidth, offsetHeight } = this.#lenses;
    const above = top - spot / 2 - ROOM - offsetHeight;
    const below = top + spot / 2 + ROOM;
    const lensTop = above >= 0 ? above : Math.min(below, clientHeight - offsetHeight);
    const lensLeft = clamp(left - offsetWidth / 2, 0, Math.max(0, clientWidth - offsetWidth));
    this.#lenses.style.transform = `translate(${lensLeft}px, ${lensTop}px)`;
  }
}
