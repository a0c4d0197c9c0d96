// The page of `serve`. What comes from the index is only ever set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const STEP = 12; // results a page
const TERMS = {
  sentence_patch: "the sentence with patches",
  sentence_frame: "the sentence with frames",
  sentence_clip: "the sentence with the clip",
};

// ---------------------------------------------------------------- requests and text

const encodeId = (id) => id.split("/").map(encodeURIComponent).join("/");

async function get(path, parameters, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters || {})) if (value) query.set(name, value);
  let response;
  try {
    response = await fetch(`${path}?${query}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The program that answers has ended. Start `serve` again.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `status ${response.status}`);
  return body;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties || {});
  made.append(...children);
  return made;
}

function clock(seconds) {
  const whole = Math.floor(seconds), rest = seconds - whole;
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  const parts = hours ? [hours, String(minutes).padStart(2, "0")] : [minutes];
  const tail = String(whole % 60).padStart(2, "0") + (rest >= 0.05 ? rest.toFixed(1).slice(1) : "");
  return [...parts, tail].join(":");
}

const signed = (x, digits = 3) => (Math.abs(x) < 0.5 / 10 ** digits ? "" : x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const plain = (x, digits = 3) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);

// ---------------------------------------------------------------- the state, which is the address

let shown = STEP; // how many results are asked for
let running = null; // the request that the page waits for

function readAddress() {
  const address = new URLSearchParams(location.search);
  const value = (name) => address.get(name) || "";
  return { q: value("q"), where: value("where"), exact: value("exact"), like: value("like") };
}

function visit(changes) {
  const state = { ...readAddress(), ...changes };
  const query = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
  history.pushState(null, "", query.size ? `/?${query}` : "/");
  shown = STEP;
  refresh();
}

function fillForm({ q, where, exact }) {
  $("query").value = q;
  $("where").value = where;
  $("exact").checked = exact === "1";
  if (where || exact) openFilter(true);
}

function openFilter(open) {
  $("filter").hidden = !open;
  $("toggle-filter").setAttribute("aria-expanded", open);
}

// ---------------------------------------------------------------- results

async function refresh() {
  const state = readAddress();
  fillForm(state);
  if ($("why").open) $("why").close();
  document.title = state.q ? `${state.q} · Search videos` : "Search videos";
  running?.abort();
  running = null;
  showError("");
  $("like").hidden = !state.like;
  $("like").querySelector("strong").textContent = state.like;
  $("welcome").hidden = Boolean(state.q || state.like);
  document.body.classList.toggle("busy", Boolean(state.q || state.like));
  if (!state.q && !state.like) return showHits([], "");

  const request = (running = new AbortController());
  try {
    const { where, exact } = state;
    const answer = state.like
      ? await get(`/api/similar/${encodeId(state.like)}`, { k: shown, where }, request.signal)
      : await get("/api/search", { q: state.q, k: shown, where, exact }, request.signal);
    const count = answer.hits.length;
    const found = count === 1 ? "1 clip" : `${count} clips`;
    showHits(answer.hits, count ? `The best ${found}, in ${answer.seconds.toFixed(2)} s` : "No clip fits the filter");
  } catch (error) {
    if (error.name === "AbortError") return;
    showHits([], "");
    showError(error.message);
  }
  if (running === request) document.body.classList.remove("busy");
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  $("where").setAttribute("aria-invalid", Boolean(message && $("where").value));
}

function showHits(hits, status) {
  const old = $("results").children.length;
  const kept = shown > STEP ? old : 0; // "More results" adds to what is there
  if (!kept) stopPlaying();
  $("results").replaceChildren(...[...$("results").children].slice(0, kept), ...hits.slice(kept).map((hit, i) => card(hit, kept + i)));
  $("status").textContent = status;
  $("more").hidden = hits.length < shown;
  if (kept) screens()[kept]?.focus();
}

function card(hit, position) {
  const made = $("card").content.firstElementChild.cloneNode(true);
  const part = (name) => made.querySelector(`.${name}`);
  const screen = part("screen"), poster = part("poster");
  made.hit = hit;
  const when = hit.start === null ? "" : `${clock(hit.start)} – ${clock(hit.end)}`;
  screen.setAttribute("aria-label", `Play ${hit.path} ${when}, result ${position + 1}, score ${plain(hit.score)}`);
  screen.setAttribute("aria-pressed", "false");
  poster.onload = () => fitCards(poster);
  poster.onerror = () => screen.classList.add("gone");
  poster.src = `/api/poster/${encodeId(hit.id)}`;
  part("rank").textContent = position + 1;
  part("time").textContent = when;
  part("path").textContent = hit.path;
  part("path").title = hit.path;
  part("captions").textContent = hit.captions.split("\n")[0];
  part("captions").title = hit.captions;
  part("score").textContent = plain(hit.score);
  part("why").hidden = !readAddress().q || Boolean(readAddress().like);
  part("why").onclick = () => explain(hit);
  part("similar").onclick = () => visit({ like: hit.id });
  screen.onpointerenter = (event) => event.pointerType === "mouse" && peek(made);
  screen.onpointerleave = () => peekEnds(made);
  screen.onfocus = () => screen.matches(":focus-visible") && peek(made);
  screen.onblur = () => stop(made);
  screen.onclick = () => toggle(made);
  return made;
}

// All cards have the shape of the first picture, within limits.
function fitCards(poster) {
  if (poster.closest("li")?.previousElementSibling) return;
  const ratio = poster.naturalWidth / poster.naturalHeight;
  $("results").style.setProperty("--shape", Math.min(Math.max(ratio, 1), 16 / 9));
}

const screens = () => [...document.querySelectorAll(".screen")];

// ---------------------------------------------------------------- playing

let playing = null; // the card

// Pointing at a clip, or moving the focus to it, plays it without sound.
function peek(card) {
  if (!calm.matches && playing !== card && !playing?.chosen) play(card);
}

function peekEnds(card) {
  if (!card.chosen && card.querySelector(".screen") !== document.activeElement) stop(card);
}

// A click chooses it: it plays on, with sound, until the next click.
function toggle(card) {
  if (playing === card && card.chosen) return stop(card);
  if (playing !== card) play(card);
  card.chosen = true;
  card.moving.muted = false;
}

function play(card) {
  stopPlaying();
  playing = card;
  const { hit } = card, screen = card.querySelector(".screen");
  const video = element("video", { muted: true, playsInline: true, preload: "auto", disableRemotePlayback: true });
  const stretch = hit.start === null ? "" : `#t=${hit.start},${hit.end}`;
  video.onplaying = () => screen.classList.add("moving");
  video.ontimeupdate = () => follow(card, video);
  video.onended = () => restart(hit, video);
  video.onpause = () => !video.ended && playing === card && hit.end !== null && video.currentTime >= hit.end - 0.3 && restart(hit, video);
  video.onerror = () => playing === card && playPreview(card);
  video.src = `/media/${encodeId(hit.id)}${stretch}`;
  put(card, video);
  video.play().catch(() => {}); // `onerror` says so too
}

function restart(hit, video) {
  video.currentTime = hit.start || 0;
  video.play().catch(() => {});
}

// What the browser cannot play moves all the same.
function playPreview(card) {
  const image = element("img", { alt: "", src: `/api/preview/${encodeId(card.hit.id)}` });
  image.onload = () => card.querySelector(".screen").classList.add("moving");
  image.onerror = () => card.querySelector(".screen").classList.add("gone");
  put(card, image);
}

function put(card, moving) {
  card.moving?.remove();
  card.moving = moving;
  moving.classList.add("moving-picture");
  const screen = card.querySelector(".screen");
  screen.querySelector(".poster").after(moving);
  screen.setAttribute("aria-pressed", "true");
}

function follow(card, video) {
  const { start, end } = card.hit;
  const from = start || 0, to = end === null ? video.duration : Math.min(end, video.duration);
  if (end !== null && video.currentTime >= end) restart(card.hit, video);
  const share = to > from ? (video.currentTime - from) / (to - from) : 0;
  card.querySelector(".progress").style.transform = `scaleX(${Math.min(Math.max(share, 0), 1)})`;
}

function stop(card) {
  if (playing === card) playing = null;
  card.chosen = false;
  if (!card.moving) return;
  if (card.moving.tagName === "VIDEO") {
    card.moving.onerror = card.moving.onpause = null;
    card.moving.pause();
    card.moving.removeAttribute("src");
    card.moving.load(); // ends the download
  }
  card.moving.remove();
  card.moving = null;
  const screen = card.querySelector(".screen");
  screen.classList.remove("moving");
  screen.setAttribute("aria-pressed", "false");
  card.querySelector(".progress").style.transform = "";
}

function stopPlaying() {
  if (playing) stop(playing);
}

// ---------------------------------------------------------------- why

const SENTENCE = -1;
let why = null; // {answer, word, tap, view}: word SENTENCE for all of it; view "answer" or a stage
let asked = null;

async function explain(hit) {
  stopPlaying();
  asked?.abort();
  const request = (asked = new AbortController());
  const { q } = readAddress();
  $("why-clip").textContent = `“${q}” in ${hit.path}${hit.start === null ? "" : `, ${clock(hit.start)} – ${clock(hit.end)}`}`;
  $("why-status").textContent = "Computing …";
  $("why-status").className = "";
  $("why-body").hidden = true;
  if (!$("why").open) $("why").showModal();
  try {
    const answer = await get("/api/explain", { id: hit.id, q }, request.signal);
    const words = answer.words.filter((word) => !isSpecial(word.text)).sort((a, b) => b.contribution - a.contribution);
    const word = answer.words.indexOf(words[0]); // -1, the sentence, if the model has no words
    why = { answer, word, tap: answer.taps.length - 1, view: "answer" };
    drawParts(answer);
    drawWhy();
    $("why-status").textContent = "";
    $("why-body").hidden = false;
  } catch (error) {
    if (error.name === "AbortError") return;
    $("why-status").textContent = error.message;
    $("why-status").className = "failed";
  }
}

// "[start]", "[end]" and "[padding]" are not words of the query.
const isSpecial = (text) => /^\[(start|end|padding)\]$/.test(text);

function drawWhy() {
  const { answer } = why;
  const chips = answer.words.map(({ text, contribution }, i) => ({ text, contribution, i }));
  const bySentence = answer.terms.indexOf("sentence_patch");
  if (bySentence >= 0) chips.unshift({ text: "whole sentence", contribution: sum(answer.parts[bySentence]), i: SENTENCE });
  const most = Math.max(...answer.words.map((word) => Math.abs(word.contribution)), 1e-9);
  redraw($("words"), chips.map(({ text, contribution, i }) => {
    const chip = element("button", { type: "button", className: `chip ${i === SENTENCE ? "sentence" : isSpecial(text) ? "special" : ""}`, onclick: () => choose({ word: i }) },
      element("span", { textContent: text }), element("small", { textContent: signed(contribution) }));
    chip.setAttribute("aria-pressed", i === why.word);
    chip.style.setProperty("--share", Math.min(Math.max(contribution, 0) / most, 1));
    return chip;
  }));
  redraw($("taps"), answer.taps.map((layer, i) => choice(`Layer ${layer}`, i === why.tap, { tap: i })));
  const views = [choice("Answer", why.view === "answer", { view: "answer" })];
  answer.stages[why.tap].forEach((_, i) => views.push(choice(`Concepts, stage ${i + 1}`, why.view === i, { view: i })));
  redraw($("view"), views);
  $("caption").textContent = why.view === "answer" ? answerText() : stageText();
  redraw($("frames"), answer.frames.map(frame));
}

// Replaces what an element holds, and keeps the focus at its place.
function redraw(parent, children) {
  const at = [...parent.children].indexOf(document.activeElement);
  parent.replaceChildren(...children);
  if (at >= 0) children[at]?.focus();
}

function choice(text, chosen, change) {
  const made = element("button", { type: "button", textContent: text, onclick: () => choose(change), tabIndex: chosen ? 0 : -1 });
  made.setAttribute("role", "radio");
  made.setAttribute("aria-checked", chosen);
  return made;
}

function choose(change) {
  Object.assign(why, change);
  drawWhy();
}

function answerText() {
  const { answer, word, tap } = why;
  if (!answer.grid[0]) return "This model compares whole frames only.";
  if (word === SENTENCE) return "The brighter a patch, the more its concept gives to the likeness of the sentence and the patches at this layer.";
  const { text, cosines, concepts, contributions, contribution } = answer.words[word];
  const count = answer.concepts[tap].filter((concept) => concept === concepts[tap]).length;
  const patches = count === 1 ? "1 patch" : count ? `${count} patches` : "class tokens, which have no place in a frame,";
  return `“${text}” is most like a concept of ${patches} at this layer, with cosine ${plain(cosines[tap], 2)}. This gives ${signed(contributions[tap])} here, and ${signed(contribution)} at all layers.`;
}

function stageText() {
  const count = new Set(why.answer.stages[why.tap][why.view].filter((concept) => concept >= 0)).size;
  return `Patches of one colour are one concept, ${count} in all after stage ${why.view + 1}. Point at one to see where else it is.`;
}

function frame(source, position) {
  const { answer, tap, view } = why, [rows, columns] = answer.grid, patches = rows * columns;
  const grid = element("div", { className: `grid ${view === "answer" ? "answer" : "concepts"}` });
  grid.style.setProperty("--columns", columns || 1);
  const cells = Array.from({ length: patches }, (_, i) => {
    const cell = element("i");
    (view === "answer" ? drawAnswer : drawConcept)(cell, position * patches + i, i);
    return cell;
  });
  grid.append(...cells);
  const lit = cells.filter((cell) => cell.classList.contains("lit")).length;
  const part = answer.frame_parts[tap]?.[position];
  const label = element("span", { className: "when" }, element("b", { textContent: position + 1 }),
    part === undefined ? "" : element("span", { textContent: signed(part), title: "What the whole frame gives at this layer" }));
  const made = element("li", {}, element("div", { className: "picture" }, element("img", { src: source, alt: "" }), grid), label);
  made.setAttribute("aria-label", `Frame ${position + 1}${lit ? `, ${lit} patches answer` : ""}`);
  return made;
}

function drawAnswer(cell, patch, i) {
  const { answer, word, tap } = why, concepts = answer.concepts[tap];
  if (word === SENTENCE) {
    const given = answer.sentence[tap], most = Math.max(...given, 1e-9);
    const share = concepts[patch] < 0 ? 0 : Math.max(given[concepts[patch]], 0) / most;
    cell.style.setProperty("--dark", 0.72 * (1 - Math.sqrt(share)));
  } else if (concepts[patch] === answer.words[word].concepts[tap]) {
    cell.classList.add("lit");
    drawEdges(cell, concepts, patch, i);
  } else {
    cell.style.setProperty("--dark", 0.58);
  }
}

function drawConcept(cell, patch) {
  const concept = why.answer.stages[why.tap][why.view][patch];
  if (concept < 0) return;
  cell.dataset.concept = concept;
  cell.style.backgroundColor = `hsl(${(concept * 137.508) % 360} 80% ${45 + (concept % 3) * 9}% / 0.6)`;
  cell.onpointerenter = () => markConcept(concept);
  cell.onpointerleave = () => markConcept(null);
}

// The outline of answering patches that touch, without lines between them.
function drawEdges(cell, concepts, patch, i) {
  const [rows, columns] = why.answer.grid, row = Math.floor(i / columns), column = i % columns;
  const ends = (inside, other) => !inside || concepts[other] !== concepts[patch];
  cell.classList.toggle("top", ends(row > 0, patch - columns));
  cell.classList.toggle("bottom", ends(row < rows - 1, patch + columns));
  cell.classList.toggle("left", ends(column > 0, patch - 1));
  cell.classList.toggle("right", ends(column < columns - 1, patch + 1));
}

function markConcept(concept) {
  for (const cell of $("frames").querySelectorAll("i")) cell.classList.toggle("faded", concept !== null && cell.dataset.concept !== String(concept));
}

// One half of this term is the words', and the other the patches'.
function halves(answer, values) {
  const ofWords = values.map((_, i) => sum(answer.words.map((word) => word.contributions[i])));
  return [
    { name: "each word with a patch", values: ofWords },
    { name: "each patch with a word", values: values.map((value, i) => value - ofWords[i]) },
  ];
}

function drawParts(answer) {
  const rows = answer.terms.flatMap((term, i) => (term === "word_patch" ? halves(answer, answer.parts[i]) : { name: TERMS[term] || term, values: answer.parts[i] }));
  const total = sum(rows.map((row) => sum(row.values)));
  const most = Math.max(...rows.map((row) => sum(row.values.map(Math.abs))), 1e-9);
  $("bars").replaceChildren(...rows.map(({ name, values }) => {
    const bar = element("div", { className: "bar-line" });
    bar.append(...values.map((value, i) => {
      const piece = element("span", { className: `piece tap${i % 6} ${value < 0 ? "less" : ""}`, title: `${name}, layer ${answer.taps[i]}: ${signed(value)}` });
      piece.style.width = `${(100 * Math.abs(value)) / most}%`;
      return piece;
    }));
    return element("div", { className: "bar-row" }, element("span", { textContent: name }), bar);
  }));
  const cell = (text, tag = "td", className = "") => element(tag, { textContent: text, className });
  const head = element("tr", {}, cell("", "td"), ...answer.taps.map((layer, i) => cell(`Layer ${layer}`, "th", `key tap${i % 6}`)), cell("Sum", "th"));
  const body = rows.map(({ name, values }) => element("tr", {}, cell(name, "th"), ...values.map((x) => cell(plain(x, 4))), cell(plain(sum(values), 4))));
  const columns = answer.taps.map((_, i) => cell(plain(sum(rows.map((row) => row.values[i])), 4)));
  const foot = element("tr", { className: "total" }, cell("Score", "th"), ...columns, cell(plain(total, 4)));
  $("parts").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body), element("tfoot", {}, foot));
  $("total").textContent = plain(answer.score);
}

// ---------------------------------------------------------------- keyboard

function nextScreen(key) {
  const all = screens(), at = all.indexOf(document.activeElement);
  if (at < 0) return key === "ArrowDown" ? all[0] : null;
  const columns = getComputedStyle($("results")).gridTemplateColumns.split(" ").length;
  const to = at + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (to < 0 && key === "ArrowUp") return $("query");
  return all[to];
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  if ($("why").open) return onKeyInDialog(event);
  const typing = target.matches("input:not([type=checkbox])");
  if (key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (key.startsWith("Arrow") && (!typing || key === "ArrowDown")) {
    const next = nextScreen(key);
    if (!next || (!typing && !target.matches(".screen, body, #results"))) return;
    event.preventDefault();
    next.focus();
    next.scrollIntoView?.({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  } else if (key === "Escape" && playing) {
    event.preventDefault();
    stopPlaying();
  } else if (!typing && target.closest?.(".card")) {
    const button = target.closest(".card").querySelector({ w: ".why:not([hidden])", m: ".similar" }[key.toLowerCase()] || "none");
    button?.click();
  }
}

// Radio buttons: arrows choose, as in a form.
function onKeyInDialog(event) {
  const group = event.target.closest?.("[role=radiogroup]");
  if (!group || !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  const all = [...group.children], at = all.indexOf(event.target);
  const step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
  const to = (at + step + all.length) % all.length;
  all[to].focus();
  all[to].click();
}

// ---------------------------------------------------------------- start

$("search").onsubmit = (event) => {
  event.preventDefault();
  const q = $("query").value.trim();
  visit({ q, where: $("where").value.trim(), exact: $("exact").checked ? "1" : "", like: "" });
};
$("exact").onchange = () => $("query").value.trim() && $("search").requestSubmit();
$("toggle-filter").onclick = () => {
  openFilter($("filter").hidden);
  if (!$("filter").hidden) $("where").focus();
};
$("like").querySelector("button").onclick = () => visit({ like: "" });
$("more").onclick = () => {
  shown += STEP;
  refresh();
};
$("why-close").onclick = () => $("why").close();
$("why").onclick = (event) => event.target === $("why") && $("why").close();
$("why").onclose = () => asked?.abort();
addEventListener("keydown", onKey);
addEventListener("popstate", () => {
  shown = STEP;
  refresh();
});
get("/api/index").then((index) => {
  $("about").textContent = index.text;
}, () => {});
refresh();
