// Elements, requests and what is said aloud; no markup is ever made from text.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

export function fill(host, ...children) {
  host.replaceChildren(...children.filter((child) => child != null && child !== false));
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const SHAPES = [
  "M2 8a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
  "M8 .5l7.5 7.5-7.5 7.5-7.5-7.5z",
  "M8 1.5l7 12.5h-14z",
  "M2.5 2.5h11v11h-11z",
];

// The shape and colour of a seat, as on the board.
export function token(seat) {
  const shape = svg("path", { d: SHAPES[seat - 1] });
  return svg("svg", { viewBox: "0 0 16 16", class: `token s${seat}`, "aria-hidden": "true" }, shape);
}

async function answer(response) {
  const body = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(body.error);
  return body;
}

export const get = async (url, signal) => answer(await fetch(url, { signal }));

export const post = async (url, body, signal) =>
  answer(
    await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    }),
  );

export function say(text) {
  $("spoken").textContent = text;
}

// Run what may fail; what went wrong is shown at the top of the page, until something succeeds.
export async function guarded(work) {
  try {
    const result = await work();
    $("trouble").hidden = true;
    return result;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    $("trouble").textContent =
      error.name === "TypeError" && /fetch/i.test(error.message)
        ? "The server does not answer; is `ringrift play` still running?"
        : error.message;
    $("trouble").hidden = false;
    return undefined;
  }
}

export const words = (text) => text.replaceAll("_", " ");
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)}%`;

// A bar from 0 to 1 with its number; `text` says it where a bar does not.
export function bar(share, text, seat) {
  const inside = el("span", { class: seat ? `fill s${seat}` : "fill" });
  inside.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("span", { class: "bar" }, el("span", { class: "track", "aria-hidden": "true" }, inside), text);
}

// Rings, territory and whose turn it is, of every seat; `names` are the players.
export function showSeats(list, position, names) {
  const rows = position.hand.map((hand, index) => {
    const seat = index + 1;
    const turn = position.player === seat;
    const won = position.winner === seat;
    const mark = won ? "won" : turn ? "to move" : null;
    return el(
      "li",
      { class: turn || won ? "now" : null },
      token(seat),
      el("span", { class: "who" }, `Seat ${seat}`, names ? el("b", {}, names[index]) : null),
      mark && el("span", { class: "mark" }, mark),
      el(
        "span",
        { class: "counts" },
        el("span", {}, `hand ${hand}`),
        el("span", {}, `eliminated ${position.eliminated[index]}/${position.rings_to_win}`),
        el("span", {}, `territory ${position.territory[index]}/${position.territory_to_win}`),
      ),
    );
  });
  fill(list, ...rows);
}

export function chances(values, note) {
  return values.map((share, index) =>
    el("div", { class: "chance" }, token(index + 1), bar(share, percent(share), index + 1), note?.[index]),
  );
}
