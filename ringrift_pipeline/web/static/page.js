// Which page this is.

import { $ } from "./dom.js";
import * as games from "./games.js";
import * as play from "./play.js";

const [first, ...names] = location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
const shown = first === "games" ? "games" : "play";
$(shown).hidden = false;
$(`to-${shown}`).setAttribute("aria-current", "page");
if (shown === "games") games.start(names.slice(0, 4));
else play.start();
