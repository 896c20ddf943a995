// Which of the legal moves is meant: by cells, by part of its text, from a list.

import { $, el, fill, words } from "./dom.js";

const LISTED = 150;

// How far along a move's path the chosen cells are, -1 where they are not on it. A target may be
// left out: the landing says which it is.
function progress(move, cells) {
  let at = 0;
  for (const cell of cells) {
    const found = move.path.indexOf(cell, at);
    if (found >= 0 && (at > 0 || found === 0)) at = found + 1;
    else if (!move.area.includes(cell)) return -1;
  }
  return at;
}

const touches = (move, cells) => cells.every((cell) => move.path.includes(cell) || move.area.includes(cell));

export class Moves {
  // play(move) when one is settled; change() whenever what is chosen or listed changed
  constructor({ play, change }) {
    this.play = play;
    this.change = change;
    this.legal = [];
    this.cells = [];
    this.active = -1;
    this.filter = $("filter");
    this.list = $("moves");
    this.filter.addEventListener("input", () => this.refresh());
    this.filter.addEventListener("keydown", (event) => this.keydown(event));
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest("[data-index]");
      if (item) this.play(this.shown[Number(item.dataset.index)]);
    });
    this.list.addEventListener("pointerover", (event) => {
      const item = event.target.closest("[data-index]");
      this.point(item ? Number(item.dataset.index) : -1, false);
    });
    this.list.addEventListener("pointerleave", () => this.point(-1, false));
  }

  set(legal) {
    this.legal = legal;
    this.cancel();
  }

  // The moves that the chosen cells leave: those that begin so, else those that touch them all.
  matching(cells) {
    const begun = this.legal.filter((move) => progress(move, cells) >= 0);
    return begun.length ? begun : this.legal.filter((move) => touches(move, cells));
  }

  // Where one move is left, any of its cells settles it; else one that ends the only path does.
  pick(cell) {
    const before = this.matching(this.cells);
    if (this.cells.length && before.length === 1 && touches(before[0], [cell])) return this.play(before[0]);
    this.cells = [...this.cells, cell];
    if (!this.matching(this.cells).length) this.cells = [cell];
    const left = this.matching(this.cells);
    if (!left.length) return this.cancel();
    const [move] = left;
    if (left.length === 1 && move.path.length && progress(move, this.cells) === move.path.length) return this.play(move);
    this.filter.value = "";
    return this.refresh();
  }

  // Where every move begins with one stack, that is chosen from the start.
  cancel() {
    const [first] = this.legal;
    const same = first && this.legal.every((move) => move.path.length > 1 && move.path[0] === first.path[0]);
    this.cells = same ? [first.path[0]] : [];
    this.filter.value = "";
    this.refresh();
  }

  // Cells that can be chosen next.
  next() {
    const cells = new Set();
    for (const move of this.found) {
      const at = Math.max(0, progress(move, this.cells));
      const path = this.cells.length ? move.path.slice(at) : move.path.slice(0, 1);
      for (const cell of [...path, ...move.area]) cells.add(cell);
    }
    return [...cells];
  }

  refresh() {
    const parts = this.filter.value.trim().toLowerCase().split(/\s+/);
    this.found = this.matching(this.cells).filter((move) =>
      parts.every((part) => words(move.text).includes(part) || move.text.includes(part)),
    );
    this.shown = this.found.slice(0, LISTED);
    this.numbered = this.found.length < 10;
    this.active = -1;
    const items = this.shown.map((move, index) =>
      el(
        "li",
        { role: "option", id: `move-${index}`, "data-index": index, "aria-selected": "false", title: words(move.text) },
        this.numbered && el("kbd", { "aria-hidden": "true" }, index + 1),
        el("span", { class: "said" }, words(move.text)),
      ),
    );
    const more = this.found.length - this.shown.length;
    if (more) items.push(el("li", { class: "more", "aria-disabled": "true" }, `${more} more; choose a cell or filter`));
    if (!this.found.length && this.legal.length) items.push(el("li", { class: "more" }, "no move has that"));
    fill(this.list, ...items);
    this.list.scrollTop = 0;
    $("count").textContent =
      this.found.length === this.legal.length ? `${this.legal.length}` : `${this.found.length} of ${this.legal.length}`;
    this.change();
  }

  get pointed() {
    return this.shown[this.active];
  }

  point(index, scroll = true) {
    if (index === this.active) return;
    this.active = index;
    for (const item of this.list.querySelectorAll("[role=option]")) {
      item.setAttribute("aria-selected", String(Number(item.dataset.index) === index));
    }
    const item = $(`move-${index}`);
    if (item && scroll) item.scrollIntoView({ block: "nearest" });
    if (item) this.filter.setAttribute("aria-activedescendant", item.id);
    else this.filter.removeAttribute("aria-activedescendant");
    this.change();
  }

  keydown(event) {
    const count = this.shown.length;
    if (event.key === "ArrowDown" && count) this.point((this.active + 1) % count);
    else if (event.key === "ArrowUp" && count) this.point(this.active <= 0 ? count - 1 : this.active - 1);
    else if (event.key === "Enter") {
      const move = this.pointed ?? (count === 1 ? this.shown[0] : undefined);
      if (move) this.play(move);
    } else if (event.key === "Escape") this.cancel();
    else return;
    event.preventDefault();
  }

  number(key) {
    const move = this.numbered && this.shown[Number(key) - 1];
    if (move) this.play(move);
    return Boolean(move);
  }
}
