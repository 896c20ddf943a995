// A game against any player. The server keeps nothing: the moves so far go with every request.

import { Board, taken } from "./board.js";
import { $, bar, chances, el, fill, get, guarded, percent, post, say, showSeats, token, words } from "./dom.js";
import { Moves } from "./moves.js";

const SAVED = "ringrift-game";
const PAUSE = 350; // ms between moves of players, so that they can be followed
const NO_SEARCH = ["human", "random", "heuristic"]; // simulations are nothing to them
const HINTS = {
  ring_placement: "places rings: choose a cell, then how many",
  movement: "moves a stack: choose it, then where it lands",
  capture: "may capture: choose where it lands, or skip",
  chain_capture: "captures on: choose where it lands",
  line_processing: "collapses a line: choose its cells, or one from the list",
  territory_processing: "takes a region: choose a cell in it, and again to confirm",
  forced_elimination: "is blocked: choose a stack whose cap is eliminated",
};

let setup; // what the server offers
let game; // config, swap_rule, players, simulations, own, seed, moves, log, marks, paused
let position;
let legal = [];
let board;
let moves;
let turn = 0; // whatever was asked in an earlier turn is out of date
let pending = null; // the request under way
let analysis = null; // and that for an analysis

// Who plays a seat: after a swap the two have changed places. A player may have simulations of its
// `own`, null for as many as all.
const placeOf = (seat) => (position.swapped ? 2 - seat : seat - 1);
const playerOf = (seat) => game.players[placeOf(seat)];
const ownOf = (seat) => game.own?.[placeOf(seat)] ?? null;
const nameOf = (seat) => playerOf(seat) + (ownOf(seat) === null ? "" : `, ${ownOf(seat)} sims`);
const names = () => game.players.map((_, index) => nameOf(index + 1));
const mine = () => position.player !== null && playerOf(position.player) === "human";

export async function start() {
  board = new Board($("play-board"), { pick: (cell) => mine() && moves.pick(cell), key: pressed });
  moves = new Moves({ play: (move) => mine() && played(move), change: mark });
  setup = await guarded(() => get("/api/setup"));
  if (!setup) return;
  $("new").onclick = () => openSetup();
  $("undo").onclick = undo;
  $("pause").onclick = () => pause(!game.paused);
  $("analyze").onclick = analyze;
  $("analyst").onchange = () => fill($("analysis"));
  $("always").onchange = () => $("always").checked && mine() && analyze();
  $("set-config").onchange = () => seatFields($("set-config").value, []);
  $("set-keep").onchange = keepField;
  $("cancel").onclick = () => $("setup").close();
  $("setup-form").onsubmit = begin;
  document.addEventListener("keydown", (event) => {
    if (!taken(event) && !event.defaultPrevented && event.target !== board.view && pressed(event)) event.preventDefault();
  });
  let saved = null;
  try {
    saved = JSON.parse(sessionStorage.getItem(SAVED));
  } catch {
    /* no game is kept */
  }
  const fresh = { ...setup.defaults, moves: [] };
  if (!setup.configs[saved?.config]) saved = fresh;
  const asks = !saved.players; // who is to play on from there
  await open(asks ? { ...fresh, ...saved, players: usual(saved.config), paused: true } : saved);
  const found = Boolean(position);
  if (!found) await open(fresh); // the kept game is none that these rules play
  board.focus();
  if (asks && found) openSetup(true);
}

// Who plays where nobody has chosen yet.
function usual(config) {
  const { seats, networks } = setup.configs[config];
  const other = networks.includes("champion") ? "champion" : "heuristic";
  return Array.from({ length: seats }, (_, index) => (index ? other : "human"));
}

async function open(begun) {
  game = { ...begun, log: [], marks: begun.marks ?? [], paused: begun.paused ?? false };
  const networks = setup.configs[game.config].networks;
  const computers = [...new Set([...networks.slice(0, 1), ...game.players, ...networks, ...setup.baselines])];
  fill($("analyst"), ...computers.filter((spec) => spec !== "human").map((spec) => el("option", {}, spec)));
  $("pause").hidden = !game.players.some((spec) => spec !== "human");
  await ask("/api/position", {});
}

// Begin a turn: what was asked before is given up, and its answer dropped.
function nextTurn() {
  for (const request of [pending, analysis]) request?.abort();
  pending = analysis = null;
  return ++turn;
}

// Ask for the next position, of this game or of how it was `from`. Until there is one the game
// stays as it is.
async function ask(url, more, from = {}) {
  const mineTurn = nextTurn();
  const { moves: sent, log, marks } = { ...game, ...from };
  pending = new AbortController();
  const began = performance.now();
  const { config, swap_rule } = game;
  const body = { config, swap_rule, moves: sent, since: log.length, ...more };
  const answer = await guarded(() => post(url, body, pending.signal));
  if (more.player) await new Promise((done) => setTimeout(done, PAUSE - (performance.now() - began)));
  if (turn !== mineTurn) return;
  pending = null;
  if (!answer) {
    if (more.player) pause(true);
    return;
  }
  Object.assign(game, { moves: answer.moves, log: [...log, ...answer.played], marks });
  position = answer.position;
  legal = answer.legal;
  save();
  render();
  await go();
}

async function go() {
  if (position.player === null) return;
  if (!mine()) {
    if (!game.paused) {
      const simulations = ownOf(position.player) ?? game.simulations;
      await ask("/api/choose", { player: playerOf(position.player), simulations, seed: game.seed });
    }
  } else if ($("always").checked) await analyze();
}

function played(move) {
  if (pending) return; // the move before is under way
  if (document.activeElement === $("filter")) board.focus();
  ask("/api/position", {}, { moves: [...game.moves, move.code], marks: [...game.marks, game.moves.length] });
}

function undo() {
  if (!game.log.length) return;
  let back = game.marks.at(-1);
  if (back === undefined) {
    back = Math.max(0, game.log.findLastIndex((ply) => !ply.forced));
    game.paused = true; // nobody here has moved: hold what is moved by itself
  }
  ask("/api/position", {}, { moves: game.moves.slice(0, back), log: game.log.slice(0, back), marks: game.marks.slice(0, -1) });
}

function pause(paused) {
  game.paused = paused;
  if (paused) nextTurn();
  save();
  render();
  if (!paused) guarded(go);
}

function save() {
  const { log, ...kept } = game;
  try {
    sessionStorage.setItem(SAVED, JSON.stringify(kept));
  } catch {
    /* a full or forbidden storage only means that a reload begins anew */
  }
}

// --- showing ------------------------------------------------------------------------------------

function render() {
  board.show(position);
  moves.set(mine() ? legal : []);
  $("config").textContent = position.config;
  showSeats($("seats"), position, names());
  $("choices").hidden = !mine();
  $("undo").disabled = !game.log.length;
  $("analyze").disabled = position.player === null;
  $("pause").textContent = game.paused ? "Continue" : "Pause";
  $("pause").setAttribute("aria-pressed", String(game.paused));
  fill($("analysis"));
  const text = status();
  fill($("status"), position.player ? token(position.player) : null, text);
  const last = game.log.findLast((ply) => !ply.forced);
  say(last ? `Seat ${last.seat}: ${words(last.text)}. ${text}` : text);
  const shown = game.log.map((ply, index) => ({ ...ply, index })).filter((ply) => !ply.forced);
  fill(
    $("log"),
    ...shown.map((ply) => el("li", { title: words(ply.text) }, el("small", {}, ply.index), token(ply.seat), el("span", { class: "said" }, words(ply.text)))),
  );
  $("log").scrollTop = $("log").scrollHeight;
}

function status() {
  if (position.player === null) {
    const order = position.ranking.map((group) => group.map((seat) => `seat ${seat}`).join(" = ")).join(", then ");
    return `Seat ${position.winner} (${playerOf(position.winner)}) has won by ${words(position.reason)}: ${order}`;
  }
  const who = playerOf(position.player);
  const swap = position.swapped ? " (sides swapped)" : "";
  if (who === "human") return `Seat ${position.player}${swap} ${HINTS[position.phase]}`;
  return `Seat ${position.player}${swap}: ${who} ${game.paused ? "waits" : "thinks…"}`;
}

function mark() {
  const pointed = moves.pointed ?? (moves.cells.length && moves.found.length === 1 ? moves.found[0] : null);
  const can = mine() ? moves.next() : [];
  board.mark({ can, picked: moves.cells, shown: pointed ? [...pointed.path, ...pointed.area] : [] });
  board.view.classList.toggle("narrowed", moves.cells.length > 0 || moves.found.length < moves.legal.length);
  if (moves.cells.length) say(`${moves.found.length} moves with ${moves.cells.join(" and ")}${moves.numbered ? "; press a number, or choose in the list" : ""}`);
}

function pressed(event) {
  if (event.key === "Escape") moves.cancel();
  else if (event.key === "/") $("filter").focus();
  else if (event.key === "u") undo();
  else if (event.key === "n") openSetup();
  else if (event.key === "a") analyze();
  else if (/^[1-9]$/.test(event.key)) return mine() && moves.number(event.key);
  else return false;
  return true;
}

// --- what a player thinks -----------------------------------------------------------------------

async function analyze() {
  if (position.player === null) return;
  analysis?.abort();
  const mineAnalysis = (analysis = new AbortController());
  const player = $("analyst").value;
  const { config, swap_rule, moves: sent, simulations } = game;
  fill($("analysis"), el("p", { class: "quiet" }, `${player} thinks…`));
  const found = await guarded(() => post("/api/analyze", { config, swap_rule, moves: sent, player, simulations }, mineAnalysis.signal));
  if (analysis !== mineAnalysis) return;
  if (!found) return fill($("analysis"));
  board.show(found.position);
  mark();
  fill($("analysis"), ...analysisOf(found));
}

function analysisOf(found) {
  const raw = found.temperature !== 1;
  const searched = found.visits > 0;
  return [
    el("h3", {}, "Chance of winning"),
    ...chances(found.chances, raw ? found.value.map((share) => el("small", {}, `value ${percent(share)}`)) : null),
    el("p", { class: "quiet" }, `${raw ? `Calibrated, temperature ${found.temperature.toFixed(2)}` : "Temperature 1"}: ${found.calibration}.`),
    el("h3", {}, "Policy", el("small", {}, searched ? ` ${found.visits} visits` : " nothing is searched")),
    el(
      "ol",
      { class: "shares" },
      ...found.moves.map((move) =>
        el(
          "li",
          { title: words(move.text) },
          bar(move.share, percent(move.share)),
          searched ? el("small", {}, `${move.visits}`) : null,
          el("button", { class: "text said", disabled: !mine(), onclick: () => played(move) }, words(move.text)),
        ),
      ),
    ),
  ];
}

// --- a new game ---------------------------------------------------------------------------------

// With `keep` the game on the board is to go on, with other players.
function openSetup(keep = false) {
  fill($("set-config"), ...Object.keys(setup.configs).map((name) => el("option", { value: name, selected: name === game.config }, name)));
  $("set-simulations").value = game.simulations;
  $("set-simulations").max = setup.most_simulations;
  $("set-seed").value = game.seed + 1;
  $("set-swap").checked = game.swap_rule;
  $("set-keep").checked = keep;
  seatFields(game.config, game.players, game.own);
  $("setup").showModal();
}

function seatFields(config, players, own = []) {
  const { seats, networks } = setup.configs[config];
  const nobody = usual(config);
  const specs = ["human", ...setup.baselines, ...networks, ...setup.folders];
  const fields = [];
  for (let seat = 1; seat <= seats; seat += 1) {
    const wanted = players[seat - 1] ?? nobody[seat - 1];
    const offered = specs.includes(wanted) ? specs : [...specs, wanted];
    const number = el("input", { type: "number", min: 1, max: setup.most_simulations, step: 1, value: own[seat - 1], placeholder: "simulations", title: "Simulations a decision of this seat's player; empty: as many as all", "aria-label": `Simulations of seat ${seat}, empty: as many as all` });
    const select = el("select", {});
    fill(select, ...offered.map((spec) => el("option", { selected: spec === wanted }, spec)));
    const chosen = () => {
      number.hidden = number.disabled = NO_SEARCH.includes(select.value);
    };
    select.onchange = chosen;
    chosen();
    fields.push(el("div", { class: "seat" }, el("label", {}, el("span", {}, token(seat), ` Seat ${seat} `), select), number));
  }
  fill($("set-seats"), ...fields);
  const more = config === game.config && game.moves.length > 0 && position.player !== null && !position.swapped;
  $("set-keep").disabled = !more;
  $("set-keep").checked &&= more;
  keepField();
}

// A game that goes on does so by its own rules.
function keepField() {
  const keep = $("set-keep").checked;
  if (keep) $("set-swap").checked = game.swap_rule;
  $("set-swap").disabled = keep || setup.configs[$("set-config").value].seats !== 2;
}

function begin(event) {
  event.preventDefault();
  const seats = [...$("set-seats").children].map((seat) => ["select", "[type=number]"].map((part) => seat.querySelector(part)));
  const players = seats.map(([select]) => select.value);
  const own = seats.map(([, number]) => (number.disabled || !number.value ? null : Number(number.value)));
  const keep = $("set-keep").checked;
  $("setup").close();
  open({
    config: $("set-config").value,
    swap_rule: players.length === 2 && $("set-swap").checked,
    players,
    simulations: Number($("set-simulations").value),
    own,
    seed: Number($("set-seed").value),
    moves: keep ? game.moves : [],
    marks: keep ? game.marks : [],
  });
  board.focus();
}

// Leave a game for this page to open, such as a recorded one up to a ply: its `config` and `moves`.
// Who plays on is asked there.
export function leave(begun) {
  sessionStorage.setItem(SAVED, JSON.stringify(begun));
}
