/** The page: continue a text with candidates side by side, fill in [MASK], show what a task finds. */
import { ApiError, get, post, stream } from "./api.js";
import { WORDS } from "./words.js";

const byId = (id) => document.getElementById(id);
const TABS = ["write", "fill", "task"];
const ALTERNATIVES = 5;

let language = localStorage.getItem("hanmo-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let words = WORDS[language];
let models = [];
let tab = "write";
let running = null; // AbortController of the stream in progress
let tokens = []; // of the editor's text: {start, end, bits, top: [[text, probability]]}, UTF-16 offsets
// Of each candidate that may be undone, its parts in the text: [start, end], UTF-16 offsets; and what an answer replaced.
let taken = [];

// Texts and languages

function showWords() {
  words = WORDS[language];
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-text]")) each.textContent = words[each.dataset.text];
  for (const each of document.querySelectorAll("[data-label]")) each.setAttribute("aria-label", words[each.dataset.label]);
  for (const each of document.querySelectorAll("[data-placeholder]")) each.placeholder = words[each.dataset.placeholder];
  byId("language").textContent = words.other;
  showModel();
  showCaret();
}

function showError(error) {
  const box = byId("error");
  if (!error) {
    box.hidden = true;
    return;
  }
  const refused = error instanceof ApiError && error.status === 401;
  byId("key-form").hidden = !refused;
  box.textContent = refused ? words.needKey : error instanceof ApiError ? error.message : `${words.unreachable} (${error.message})`;
  box.hidden = false;
}

/** Run an action; show its error, if any, in place of an earlier one. */
async function attempt(action) {
  showError(null);
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

// Models and tabs

const ABILITY = { write: "completions", fill: "fill", task: "tasks" };
const fits = (model, name) => model.abilities.includes(ABILITY[name]);

async function loadModels() {
  models = (await get("v1/models")).data;
  const served = TABS.filter((name) => models.some((model) => fits(model, name)));
  const [first = "write"] = served;
  for (const name of TABS) byId(`tab-${name}`).hidden = name !== first && !served.includes(name);
  choose(first);
}

function choose(name) {
  tab = name;
  for (const each of TABS) {
    byId(`tab-${each}`).setAttribute("aria-selected", each === name);
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    byId(`panel-${each}`).hidden = each !== name;
  }
  const fitting = models.filter((model) => fits(model, name));
  const kept = byId("model").value;
  byId("model").replaceChildren(...fitting.map((model) => new Option(model.id, model.id, false, model.id === kept)));
  if (models.length && !fitting.length) showError(new ApiError(404, words.noModel));
  showModel();
}

const chosen = () => models.find(({ id }) => id === byId("model").value);
const answers = () => chosen()?.abilities.includes("answers") ?? false; // such as T5, whose texts do not go on from the prompt
const mask = () => chosen()?.mask ?? "[MASK]";

function showModel() {
  byId("score-button").hidden = answers();
  byId("mask-button").textContent = `${words.insert} ${mask()}`;
}

function moveTab(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const shown = TABS.filter((name) => !byId(`tab-${name}`).hidden);
  if (!step) return;
  choose(shown[(shown.indexOf(tab) + step + shown.length) % shown.length]);
  byId(`tab-${tab}`).focus();
}

// Surprise

/** Read the log-probabilities of tokens in a text, whose offsets count characters, not UTF-16 units. */
function readTokens(logprobs, text) {
  const units = [0];
  for (const character of text) units.push(units.at(-1) + character.length);
  return logprobs.tokens.map((token, i) => {
    const start = logprobs.text_offset[i], value = logprobs.token_logprobs[i];
    const top = Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([each, logprob]) => [each, Math.exp(logprob)]);
    return { start: units[start], end: units[start + [...token].length], bits: value === null ? null : -value / Math.LN2, top };
  });
}

/** Make spans of a text, each token shaded by its bits. */
function shaded(text, own) {
  const nodes = [];
  let at = 0;
  for (const token of own.filter(({ start, end }) => end > start)) { // bytes of a character have no text
    if (token.start > at) nodes.push(text.slice(at, token.start));
    const span = document.createElement("span");
    span.className = "bits";
    span.textContent = text.slice(token.start, token.end);
    if (token.bits !== null) span.style.setProperty("--bits", Math.min(token.bits / 14, 1) * 0.75);
    span.token = token;
    nodes.push(span);
    at = Math.max(at, token.end);
  }
  nodes.push(text.slice(at));
  return nodes;
}

const percent = (probability) => `${Number((100 * probability).toPrecision(2))} %`;
const said = ({ bits }) => (bits === null ? "" : `${bits.toFixed(1)} ${words.bits} · ${words.probability} ${percent(2 ** -bits)}`);
const others = ({ top }) => top.map(([text, probability]) => `${text.replaceAll("\n", "↵")} ${percent(probability)}`);

function showTip(span, x, y) {
  const tip = byId("tip");
  tip.hidden = !span || !byId("shade").checked;
  if (tip.hidden) return;
  tip.textContent = [said(span.token), ...others(span.token)].join("\n");
  tip.style.left = `${Math.min(x + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(y + 18, innerHeight - tip.offsetHeight - 8)}px`;
}

function pointed({ clientX, clientY }) {
  showTip(document.elementsFromPoint(clientX, clientY).find((each) => each.token), clientX, clientY);
}

/** Go to the next token of a candidate by an arrow key. */
function walk(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const box = event.currentTarget, spans = [...box.querySelectorAll(".bits")];
  if (!step || !spans.length) return;
  event.preventDefault();
  box.at = Math.max(0, Math.min((box.at ?? -1) + step, spans.length - 1));
  spans.forEach((each, i) => each.classList.toggle("current", i === box.at));
  const { left, bottom } = spans[box.at].getBoundingClientRect();
  showTip(spans[box.at], left, bottom);
}

/** Describe the token before the caret, for the keyboard and for screen readers. */
function showCaret() {
  const caret = byId("text").selectionStart;
  const token = tokens.find(({ start, end }) => start < caret && caret <= end);
  const known = tokens.filter(({ bits }) => bits !== null);
  const characters = [...byId("text").value.slice(known[0]?.start, known.at(-1)?.end)].length;
  const total = known.reduce((sum, { bits }) => sum + bits, 0);
  const all = characters && known.length ? `${(total / characters).toFixed(2)} ${words.bitsPerCharacter}` : "";
  const one = token ? `${byId("text").value.slice(token.start, token.end)}: ${said(token)}` : "";
  const more = token?.top.length ? `${words.instead}: ${others(token).join(", ")}` : "";
  byId("reading").textContent = [one, more, all].filter(Boolean).join(" — ");
}

// The editor

function showEditor() {
  const area = byId("text");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.6)}px`;
  byId("shades").replaceChildren(...(byId("shade").checked ? shaded(area.value, tokens) : []), "\n");
  byId("shades").scrollTop = area.scrollTop;
  byId("undo-button").disabled = !taken.length;
  showCaret();
}

/** After a change of the text, keep the tokens before it. */
let before = "";
function edited(event) {
  if (event?.isComposing) return; // an input method is not done yet
  const text = byId("text").value;
  const shorter = Math.min(text.length, before.length);
  let same = 0, behind = 0;
  while (same < shorter && text[same] === before[same]) same += 1;
  while (behind < shorter - same && text.at(-1 - behind) === before.at(-1 - behind)) behind += 1;
  replaced(same, before.length - behind, text.length - behind - same);
  before = text;
  showEditor();
}

/** Follow a change: the text from `at` to `end` was replaced by so many characters, which belong to no candidate. */
function replaced(at, end, count) {
  const shift = count - (end - at);
  const parts = ([from, to]) => [[from, Math.min(to, at)], [Math.max(from, end) + shift, to + shift]].filter(([a, b]) => a < b);
  taken = taken.map((each) => ({ ...each, parts: each.parts.flatMap(parts) })).filter((each) => each.parts.length || each.source);
  tokens = tokens.filter((token) => token.end <= at);
}

function put(text, own) {
  byId("text").value = before = text;
  tokens = own;
  showEditor();
  byId("text").scrollTop = byId("text").scrollHeight;
}

/** Remove the candidate that was taken last; what was typed since, in it or behind it, stays, behind what it replaced. */
function undo() {
  const last = taken.pop();
  if (last) {
    let text = byId("text").value;
    for (const [from, to] of [...last.parts].reverse()) {
      text = text.slice(0, from) + text.slice(to);
      replaced(from, to, 0);
    }
    if (last.source) ({ tokens, taken } = last.source);
    put((last.source?.text ?? "") + text, tokens);
    const place = last.source?.text.length ?? last.parts[0][0];
    byId("text").setSelectionRange(place, place);
  }
  if (byId("undo-button").disabled && document.activeElement !== byId("text")) byId("text").focus();
}

// Candidates

function card(number) {
  const item = document.createElement("li");
  item.innerHTML = '<p lang="zh"></p><footer><span role="status"></span><button type="button"></button></footer>';
  item.text = "";
  item.tokens = [];
  item.answers = answers();
  const shown = item.querySelector("p");
  shown.tabIndex = 0;
  shown.addEventListener("keydown", walk);
  shown.addEventListener("blur", () => showTip());
  const button = item.querySelector("button");
  button.textContent = `${words.use} ${number}`;
  button.title = `Alt+${number}`;
  button.addEventListener("click", () => take(item));
  return item;
}

function grow(item, choice) {
  item.text += choice.text;
  if (choice.logprobs) item.tokens.push(...readTokens(choice.logprobs, item.text));
  const reason = choice.stop_reason;
  item.querySelector("p").replaceChildren(...(byId("shade").checked ? shaded(item.text, item.tokens) : [item.text]));
  if (reason) item.querySelector("footer span").textContent = words.ends[reason] ?? reason;
}

/** Put a candidate behind the text, or an answer in its place. */
function take(item) {
  running?.abort();
  setRunning(null);
  const source = item.answers && item.text ? { text: byId("text").value, tokens, taken } : undefined;
  const text = source ? "" : byId("text").value;
  if (source) [tokens, taken] = [[], []];
  if (item.text) taken = [...taken, { parts: [[text.length, text.length + item.text.length]], source }];
  const moved = item.tokens.map((token) => ({ ...token, start: token.start + text.length, end: token.end + text.length }));
  put(text + item.text, [...tokens, ...moved]);
  showTip();
  byId("cards").replaceChildren();
  byId("continue-button").focus();
}

function nextSeed() {
  const box = byId("seed");
  if (!byId("lock").checked || box.value === "") box.value = crypto.getRandomValues(new Uint32Array(1))[0];
  return Number(box.value);
}

/** Set the stream in progress, or null; the focus does not stay on a button that this disables. */
function setRunning(controller) {
  const [from, to] = controller ? ["continue-button", "stop-button"] : ["stop-button", "continue-button"];
  const moves = document.activeElement === byId(from);
  running = controller;
  byId(to).disabled = false;
  if (moves) byId(to).focus();
  byId(from).disabled = true;
}

async function continueText() {
  if (running) return;
  const count = Number(byId("candidates").value);
  const cards = Array.from({ length: count }, (_, i) => card(i + 1));
  showTip();
  byId("cards").replaceChildren(...cards);
  const body = {
    model: byId("model").value, prompt: byId("text").value, n: count, seed: nextSeed(), logprobs: ALTERNATIVES,
    temperature: Number(byId("temperature").value), top_k: Number(byId("top-k").value),
    max_tokens: Number(byId("length").value), stop_at_sentence: byId("sentence").checked,
  };
  const controller = new AbortController();
  setRunning(controller);
  try {
    for await (const event of stream("v1/completions", body, controller.signal)) {
      for (const choice of event.choices) grow(cards[choice.index], choice);
    }
  } catch (error) {
    if (!cards.some((each) => each.text)) byId("cards").replaceChildren();
    throw error;
  } finally {
    for (const each of cards) each.querySelector("footer span").textContent ||= words.ends.cancelled;
    if (running === controller) setRunning(null);
  }
}

async function score() {
  const text = byId("text").value;
  const body = { model: byId("model").value, prompt: text, max_tokens: 0, echo: true, logprobs: ALTERNATIVES };
  const [choice] = (await post("v1/completions", body)).choices;
  if (byId("text").value === text) put(text, readTokens(choice.logprobs, text));
}

// Masks and tasks

function insertMask() {
  const area = byId("fill-text");
  area.setRangeText(mask(), area.selectionStart, area.selectionEnd, "end");
  area.focus();
}

/** Replace one of the masks in a text, which may also be T5's own. */
function withoutMask(text, number, token) {
  const own = text.includes("<extra_id_") ? /<extra_id_\d+>/g : new RegExp(mask().replace(/[^\w<>]/g, "\\$&"), "g");
  let seen = -1;
  return text.replace(own, (found) => (++seen === number ? token.replace(/^(##|▁)/, "") : found));
}

async function fill() {
  const area = byId("fill-text");
  const { masks } = await post("v1/fill", { model: byId("model").value, input: area.value, k: 8 });
  byId("fills").replaceChildren(...masks.map((found, number) => {
    const box = document.createElement("div");
    box.className = "fill";
    box.innerHTML = "<strong></strong><ol></ol>";
    box.querySelector("strong").textContent = `${mask()} ${number + 1}`;
    box.querySelector("ol").replaceChildren(...found.map(({ token, probability }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${token} ${percent(probability)}`;
      button.addEventListener("click", () => {
        area.value = withoutMask(area.value, number, token);
        attempt(fill);
      });
      item.append(button);
      return item;
    }));
    return box;
  }));
}

/** Show spans marked in the text; anything else as JSON. */
function shown(text, answer) {
  const spans = Array.isArray(answer) ? answer : answer?.spans;
  if (!Array.isArray(spans) || !spans.every((each) => Number.isInteger(each.start) && Number.isInteger(each.stop))) {
    const box = document.createElement("pre");
    box.textContent = JSON.stringify(answer, null, 2);
    return [box];
  }
  if (!spans.length) return [words.nothing];
  const characters = [...text];
  const inside = (start, stop, among) => { // spans within others are nested
    const nodes = [];
    let at = start;
    among.forEach((span, i) => {
      if (span.start < at) return;
      nodes.push(characters.slice(at, span.start).join(""));
      const mark = document.createElement("mark");
      mark.dataset.label = span.label;
      mark.append(...inside(span.start, span.stop, among.slice(i + 1).filter((each) => each.stop <= span.stop)));
      nodes.push(mark);
      at = span.stop;
    });
    return [...nodes, characters.slice(at, stop).join("")];
  };
  const box = document.createElement("p");
  box.className = "marked";
  box.lang = "zh";
  box.append(...inside(0, characters.length, [...spans].sort((a, b) => a.start - b.start || b.stop - a.stop)));
  return [box];
}

async function predict() {
  const text = byId("task-text").value;
  const { results } = await post(`v1/tasks/${encodeURIComponent(byId("model").value)}`, { input: [text] });
  byId("answer").replaceChildren(...shown(text, results[0]));
}

// Events

const MAIN = { write: continueText, fill, task: predict };

function pressed(event) {
  if (event.isComposing) return;
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key === "Enter") attempt(MAIN[tab]);
  else if (event.key === "Escape") running?.abort();
  else if (tab !== "write") return; // the other tabs' fields undo by themselves
  else if (control && event.shiftKey && event.key.toLowerCase() === "z") undo();
  else if (event.altKey && /^Digit[1-4]$/.test(event.code)) byId("cards").children[Number(event.code.at(-1)) - 1]?.querySelector("button").click();
  else return;
  event.preventDefault();
}

function listen() {
  const on = (id, type, action) => byId(id).addEventListener(type, action);
  for (const name of TABS) on(`tab-${name}`, "click", () => { showError(null); choose(name); });
  document.querySelector("nav").addEventListener("keydown", moveTab);
  document.addEventListener("keydown", pressed);
  for (const type of ["mousemove", "pointerdown"]) document.addEventListener(type, pointed); // a touch moves no mouse
  on("model", "change", showModel);
  on("text", "input", edited);
  on("text", "compositionend", () => edited());
  on("text", "scroll", () => { byId("shades").scrollTop = byId("text").scrollTop; });
  for (const type of ["keyup", "click"]) on("text", type, showCaret);
  on("shade", "change", showEditor);
  on("continue-button", "click", () => attempt(continueText));
  on("stop-button", "click", () => running?.abort());
  on("undo-button", "click", undo);
  on("score-button", "click", () => attempt(score));
  on("mask-button", "click", insertMask);
  on("fill-button", "click", () => attempt(fill));
  on("task-button", "click", () => attempt(predict));
  on("key-form", "submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("hanmo-key", byId("key").value);
    byId("key-form").hidden = true;
    attempt(loadModels).then(() => byId(byId("key-form").hidden ? `tab-${tab}` : "key").focus());
  });
  on("language", "click", () => {
    language = language === "zh" ? "en" : "zh";
    localStorage.setItem("hanmo-language", language);
    showWords();
  });
  for (const output of document.querySelectorAll("output")) {
    const input = byId(output.htmlFor.value);
    const show = () => { output.value = input.value; };
    input.addEventListener("input", show);
    show();
  }
}

listen();
showWords();
edited();
attempt(loadModels);
