// The board: the server's picture, a cursor for the keyboard, and marks on cells.

import { $, el, fill, say } from "./dom.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ZOOMS = [1, 1.5, 2, 3, 4];

// Where a cell lies: columns count half cells on hexagonal boards, whose rows are shifted.
function place(cell) {
  const [x, y, z] = cell.split(",").map(Number);
  return z === undefined ? { x, y } : { x: x + z / 2, y: z };
}

export class Board {
  // pick(cell) is called for a chosen cell, key(event) for keys that the board has no use for.
  constructor(host, { pick, key }) {
    this.pick = pick;
    this.zoom = 0;
    this.paths = new Map();
    this.cursor = null;
    this.help = el("p", { class: "cell", id: `${host.id}-cell` }, "\u00a0");
    this.view = el("div", {
      class: "view",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "board",
      "aria-label": "Board: arrow keys move the cursor, Enter chooses a cell, Escape cancels",
      "aria-describedby": `${host.id}-cell`,
    });
    const zooms = el(
      "div",
      { class: "zooms" },
      el("button", { "aria-label": "Larger board", onclick: () => this.scale(1) }, "+"),
      el("button", { "aria-label": "Smaller board", onclick: () => this.scale(-1) }, "−"),
    );
    host.append(el("div", { class: "frame" }, this.view), el("div", { class: "under" }, this.help, zooms));
    this.view.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-cell]")?.dataset.cell;
      if (cell) this.go(cell), this.pick?.(cell);
    });
    this.view.addEventListener("pointerover", (event) => {
      const cell = event.target.closest("[data-cell]")?.dataset.cell;
      if (cell) this.help.textContent = `${cell}: ${this.describe(cell)}`;
    });
    this.view.addEventListener("keydown", (event) => this.keydown(event, key));
  }

  show(position) {
    const picture = new DOMParser().parseFromString(position.svg, "image/svg+xml").documentElement;
    this.position = position;
    fill(this.view, document.importNode(picture, true));
    this.paths = new Map(
      [...this.view.querySelectorAll("[data-cell]")].map((path) => [path.dataset.cell, path]),
    );
    if (!this.paths.has(this.cursor)) this.cursor = null;
    this.help.textContent = this.cursor ? `${this.cursor}: ${this.describe(this.cursor)}` : "\u00a0";
    this.point();
  }

  describe(cell) {
    const { stacks, markers, collapsed } = this.position;
    if (stacks[cell]) {
      const rings = [...stacks[cell]];
      const top = rings.at(-1);
      const cap = rings.length - 1 - rings.findLastIndex((ring) => ring !== top);
      const below = rings.length > 1 ? `, rings from the bottom ${rings.join(" ")}` : "";
      return `stack of ${rings.length}, seat ${top} on top${rings.length > 1 ? ` with a cap of ${cap}` : ""}${below}`;
    }
    if (markers[cell]) return `marker of seat ${markers[cell]}`;
    if (collapsed[cell]) return `territory of seat ${collapsed[cell]}`;
    return "empty";
  }

  // can: cells that may be chosen next; picked: those chosen; shown: those of a move pointed at
  mark({ can = [], picked = [], shown = [] }) {
    for (const [name, cells] of Object.entries({ can, picked, shown })) {
      const wanted = new Set(cells);
      for (const [cell, path] of this.paths) path.classList.toggle(name, wanted.has(cell));
    }
    this.can = new Set(can);
  }

  go(cell) {
    this.cursor = cell;
    this.point();
  }

  point() {
    for (const [cell, path] of this.paths) path.classList.toggle("cursor", cell === this.cursor);
  }

  keydown(event, key) {
    if (taken(event)) return;
    if (STEPS[event.key]) this.move(...STEPS[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.cursor && this.pick?.(this.cursor);
    else if (event.key === "+" || event.key === "=") this.scale(1);
    else if (event.key === "-") this.scale(-1);
    else if (!key?.(event)) return;
    event.preventDefault();
  }

  // To the nearest cell that way: in its row, or in the next row that has one.
  move(dx, dy) {
    const cells = [...this.paths.keys()].map((cell) => ({ cell, ...place(cell) }));
    if (!this.cursor) {
      cells.sort((a, b) => Math.hypot(a.x, a.y) - Math.hypot(b.x, b.y));
      this.cursor = [...(this.can ?? [])][0] ?? cells[0].cell;
    } else {
      const here = place(this.cursor);
      const there = cells.filter((at) => (dx ? at.y === here.y && (at.x - here.x) * dx > 0 : (at.y - here.y) * dy > 0));
      const far = (at) => Math.abs(at.y - here.y) * 1000 + Math.abs(at.x - here.x - 0.01);
      there.sort((a, b) => far(a) - far(b));
      if (!there.length) return;
      this.cursor = there[0].cell;
    }
    this.point();
    const said = `${this.cursor}: ${this.describe(this.cursor)}`;
    this.help.textContent = said;
    say(this.can?.has(this.cursor) ? `${said}; can be chosen` : said);
    this.paths.get(this.cursor).scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  scale(by) {
    this.zoom = Math.max(0, Math.min(ZOOMS.length - 1, this.zoom + by));
    this.view.style.width = `${ZOOMS[this.zoom] * 100}%`;
    this.view.parentElement.classList.toggle("zoomed", this.zoom > 0);
  }

  focus() {
    this.view.focus({ preventScroll: true });
  }
}

// Keys that are not the page's: the browser's own, with a modifier, and those that a field takes.
export const taken = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("setup").open;
