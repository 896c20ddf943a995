// Recorded games: config, generation, shard, game; then ply by ply.

import { Board, taken } from "./board.js";
import { $, bar, chances, el, fill, get, guarded, percent, say, showSeats, svg, token, words } from "./dom.js";
import { leave } from "./play.js";

const LEVELS = ["config", "generation", "shard", "game"];
const SIZE = { width: 600, height: 90, surprise: 30 };

let game;
let at = 0; // the ply that is shown
let board;
let asking = null;

export async function start(names) {
  const steps = [["all games", "/games"], ...names.map((name, index) => [`${LEVELS[index]} ${name}`, `/games/${names.slice(0, index + 1).join("/")}`])];
  fill(
    $("crumbs"),
    el("ol", {}, ...steps.map(([text, url], index) => el("li", {}, index === names.length ? el("span", { "aria-current": "page" }, text) : el("a", { href: url }, text)))),
  );
  const place = ["/api/games", ...names.map(encodeURIComponent)].join("/");
  const found = await guarded(() => get(place));
  if (!found) return;
  if (names.length < LEVELS.length) list(names, found.items);
  else await view(place, found);
}

const COLUMNS = [
  { config: "config", generations: "generations" },
  { generation: "generation", player: "played by", shards: "shards" },
  { shard: "shard", games: "games", positions: "positions" },
  { game: "game", plies: "plies", decisions: "decisions", winners: "won by", reason: "how", surprise: "mean surprise, nats" },
];

function list(names, items) {
  const columns = COLUMNS[names.length];
  const level = LEVELS[names.length];
  if (!items.length) return fill($("listing"), el("p", { class: "status" }, "No games are recorded here yet: `ringrift loop` plays some."));
  const kind = (name) => (items.some((item) => typeof item[name] === "number") ? "number" : null);
  const cell = (item, name) => {
    const value = item[name];
    if (name === level) return el("th", { scope: "row" }, el("a", { href: `/games/${[...names, value].join("/")}` }, value));
    if (name === "winners") return el("td", {}, ...(value.length ? value.flatMap((seat) => [token(seat), ` seat ${seat} `]) : ["no winner"]));
    const shown = value === null ? "–" : name === "surprise" ? value.toFixed(3) : name === "reason" ? words(value) : value;
    return el("td", { class: kind(name) }, shown);
  };
  const rows = (item) => [
    el("tr", {}, ...Object.keys(columns).map((name) => cell(item, name))),
    item.error ? el("tr", {}, el("td", { class: "quiet", colspan: Object.keys(columns).length }, item.error)) : null,
  ];
  return fill(
    $("listing"),
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...Object.entries(columns).map(([name, title]) => el("th", { scope: "col", class: kind(name) }, title)))),
      el("tbody", {}, ...items.flatMap(rows)),
    ),
  );
}

// --- one game -----------------------------------------------------------------------------------

const cut = () => !game.winners.length;

async function view(place, found) {
  game = { ...found, place };
  $("listing").hidden = true;
  $("viewer").hidden = false;
  board = new Board($("game-board"), { key: (event) => stepped(event, "Page") });
  $("game-title").textContent = game.id;
  const who = game.player === "heuristic" ? "the heuristic, which records no values or surprise" : `the model of generation ${game.model_generation}`;
  $("summary").textContent =
    `Played by ${who}; ${game.plies} plies, ${game.decisions} of them decisions; ` +
    (cut() ? "cut short, no winner." : `won by seat ${game.winners.join(" and ")}: ${words(game.reason)}.`);
  $("slider").max = game.plies;
  $("slider").oninput = () => go(Number($("slider").value));
  $("first").onclick = () => go(0);
  $("previous").onclick = () => go(at - 1);
  $("next").onclick = () => go(at + 1);
  $("last").onclick = () => go(game.plies);
  $("go-on").onclick = playOn;
  document.addEventListener("keydown", (event) => {
    if (!taken(event) && event.target !== board.view && stepped(event, "Arrow")) event.preventDefault();
  });
  const wanted = Number(new URLSearchParams(location.search).get("ply"));
  await go(Number.isInteger(wanted) ? wanted : 0);
}

// On the board the arrows move its cursor, so there other keys step, which elsewhere scroll the page.
const STEPS = { Arrow: { ArrowLeft: -1, ArrowRight: 1 }, Page: { PageUp: -1, PageDown: 1 } };

function stepped(event, keys) {
  const by = STEPS[keys][event.key];
  const to = by ? at + by : { Home: 0, End: game.plies }[event.key];
  if (to === undefined) return false;
  go(to);
  return true;
}

async function go(ply) {
  at = Math.max(0, Math.min(game.plies, ply));
  $("slider").value = at;
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const shown = await guarded(() => get(`${game.place}?ply=${at}`, signal));
  if (!shown) return;
  history.replaceState(null, "", `${location.pathname}?ply=${at}`);
  render(shown);
}

function render({ ply, position, played, decision }) {
  board.show(position);
  showSeats($("game-seats"), position);
  $("go-on").disabled = position.player === null;
  const end = cut() ? "cut short" : "the end";
  const kind = !decision ? "forced" : decision.full_search ? "full search" : "cheap search";
  const text = played ? `Ply ${ply} of ${game.plies}, seat ${played.seat}: ${words(played.text)} (${kind})` : `Ply ${ply} of ${game.plies}: ${end}`;
  fill($("ply-status"), played ? token(played.seat) : null, text);
  say(text);
  $("slider").setAttribute("aria-valuetext", text);
  for (const id of ["first", "previous"]) $(id).disabled = ply === 0;
  for (const id of ["next", "last"]) $(id).disabled = ply === game.plies;
  fill($("ply"), ...(decision ? recorded(played, decision) : [el("p", { class: "quiet" }, played ? "There was one legal move; nothing is recorded." : cut() ? "The game was cut short here, without a winner." : "The game is over.")]));
  timeline();
}

function recorded(played, decision) {
  const valued = game.player !== "heuristic";
  const before = decision.root_value.map((share) => el("small", {}, `before ${percent(share)}`));
  return [
    el(
      "p",
      {},
      `${decision.full_search ? "Full search: trains the policy" : "Cheap search: does not train the policy"}. `,
      `${valued ? `Surprise ${decision.surprise.toFixed(3)} nats. ` : ""}${decision.opponent ? "Moved by the earlier model it plays against. " : ""}`,
      `${decision.legal} legal moves.`,
    ),
    ...(valued ? [el("h3", {}, "Value after search"), ...chances(decision.search_value, before)] : []),
    el("h3", {}, "Search policy"),
    el(
      "ol",
      { class: "shares" },
      ...decision.moves.map((move) =>
        el("li", { class: move.played ? "played" : null, title: words(move.text) }, bar(move.share, percent(move.share)), el("span", { class: "said" }, words(move.text)), move.played ? el("b", {}, "played") : null),
      ),
    ),
    decision.moves.some((move) => move.played) ? null : el("p", { class: "quiet" }, `Played, further down: ${words(played.text)}`),
  ];
}

// Every seat's value over the game and the surprise of each decision; a click goes there.
function timeline() {
  const { width, height, surprise } = SIZE;
  const x = (ply) => (ply / Math.max(1, game.plies)) * width;
  const most = Math.max(0.001, ...game.timeline.map((entry) => entry.surprise));
  const valued = game.player !== "heuristic" && game.timeline.length > 0;
  if (!valued) return fill($("timeline"));
  const seats = game.timeline[0].value.map((_, index) =>
    svg("polyline", {
      class: `s${index + 1}`,
      points: game.timeline.map((entry) => `${x(entry.ply).toFixed(1)},${((1 - entry.value[index]) * (height - surprise)).toFixed(1)}`).join(" "),
    }),
  );
  const bars = game.timeline.map((entry) => {
    const tall = (entry.surprise / most) * (surprise - 4);
    return svg("rect", { x: (x(entry.ply) - 1.5).toFixed(1), y: (height - tall).toFixed(1), width: 3, height: tall.toFixed(1) });
  });
  const here = svg("path", { class: "here", d: `M${x(at).toFixed(1)} 0V${height}` });
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "timeline", "aria-hidden": "true", preserveAspectRatio: "none" }, ...seats, ...bars, here);
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * game.plies));
  });
  return fill($("timeline"), chart, el("p", { class: "quiet" }, "Lines: value of each seat after the search. Bars: surprise."));
}

function playOn() {
  leave({ config: game.config, swap_rule: false, moves: game.moves.slice(0, at) });
  location.assign("/");
}
