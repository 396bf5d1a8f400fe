// The chat page: what is asked, what is answered, and how the answer comes about.

import { AnswerView, make } from "./answer.js";
import { Run } from "./run.js";
import { bind, load } from "./settings.js";
import { headers, postEvents, refusal, Refused } from "./sse.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const [log, messages, prompt, composer, dock] = ["log", "messages", "prompt", "composer", "dock"].map($);
const values = load();
const talk = []; // {role, content} as it is sent; turns that failed are not in it
let token = "";
let info = null;
let current = null; // {run, view, stop} of the answer under way
let shown = null; // {run, view} whose rounds are shown

try { token = sessionStorage.getItem("sled-token") ?? ""; } catch { /* kept nowhere then */ }

const timeline = new Timeline({
  scroller: $("timeline"), spread: $("spread"), canvas: $("canvas"), line: $("picked"),
  pick: (round) => shown?.view.light(round?.base ?? -1, round ? round.base + round.tokens : -1),
});

// ---- asking ----

async function ask(text) {
  if (current || !text.trim()) return;
  $("welcome").hidden = true;
  const mine = make("div", "user", text.trim());
  messages.append(mine);
  await answer([...talk, { role: "user", content: text.trim() }]);
}

async function answer(said) {
  const [run, view, stop] = [new Run(), new AnswerView(), new AbortController()];
  current = { run, view, stop };
  messages.append(view.root);
  show(run, view);
  busy(true);
  sticks = true;
  stick();
  let ending = null, problem = null, seed = "";
  try {
    for await (const event of postEvents("sled/events", body(said), { token, signal: stop.signal })) {
      if (event.type === "Queued") seed = event.seed;
      if (event.type === "Error") problem = event.error;
      if (event.type === "Answer") ending = event;
      run.take(event);
      view.take(event);
      if (event.type === "Opened" || event.type === "ServerLost") link(run);
      stick();
    }
    if (!ending && !problem) problem = { message: "The answer was broken off." };
  } catch (error) {
    if (!stop.signal.aborted) problem = error instanceof Refused ? error : { message: "This page's server does not answer. Is `sled api` still running?" };
  }
  run.end();
  close(view, run, said, { ending, problem, seed, stopped: stop.signal.aborted });
}

function body(said) {
  const wanted = { messages: values.system.trim() ? [{ role: "system", content: values.system.trim() }, ...said] : said, temperature: values.temperature, lastTopp: values.lastTopp, max_tokens: values.max_tokens };
  if (values.seed !== "") wanted.seed = Number(values.seed);
  return wanted;
}

function close(view, run, said, { ending, problem, seed, stopped }) {
  current = null;
  if (!view.root.isConnected) return busy(false); // a new chat was begun meanwhile
  if (view.text) {
    talk.length = 0;
    talk.push(...said, { role: "assistant", content: view.text });
  }
  foot(view, run, said, { ending, seed, stopped });
  view.finish();
  if (problem) fail(view, said, problem);
  else view.notice.hidden = !view.open.textContent;
  busy(false);
  link(run, problem);
  figures(run);
  timeline.draw();
  $("status").textContent = problem ? `Failed: ${problem.message}` : `Answer ${stopped ? "stopped" : "finished"}: ${run.tokens} tokens. ${view.text}`;
  stick();
}

function foot(view, run, said, { ending, seed, stopped }) {
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(view.text);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const tokens = button("Tokens", () => {
    const on = tokens.getAttribute("aria-pressed") !== "true";
    tokens.setAttribute("aria-pressed", String(on));
    view.showTokens(on);
    show(run, view);
  });
  tokens.setAttribute("aria-pressed", "false");
  tokens.title = "Show who wrote which token";
  const rounds = button("Rounds", () => show(run, view));
  rounds.title = "Show this answer's rounds below";
  const again = button("Again", () => retry(view, said));
  const why = { stop: "", length: "cut at the limit" }[ending?.finish_reason] ?? (stopped ? "stopped" : "");
  const numbers = run.figures();
  const parts = [`${run.tokens} tokens`, numbers.rate && `${numbers.rate.toFixed(1)} a second`, numbers.accepted !== null && `${Math.round(numbers.accepted * 100)} % accepted`, seed && values.temperature > 0 && `seed ${seed}`, why];
  view.foot.append(copy, tokens, rounds, again, make("span", "why", parts.filter(Boolean).join(" · ")));
}

function fail(view, said, problem) {
  const box = make("div", "problem");
  box.setAttribute("role", "alert");
  box.append(make("span", "", problem.message), Object.assign(button("Try again", () => retry(view, said)), { className: "plain" }));
  view.foot.before(box);
  view.notice.hidden = true;
  if (problem.status === 401) askToken(() => retry(view, said));
}

function retry(view, said) {
  if (current) return;
  while (view.root.nextSibling) view.root.nextSibling.remove();
  view.root.remove();
  talk.length = 0;
  talk.push(...said.slice(0, -1));
  answer(said);
}

// ---- showing ----

function show(run, view) {
  shown?.view.light(-1, -1);
  shown = { run, view };
  dock.hidden = false;
  timeline.show(run);
  figures(run);
}

function figures(run) {
  const f = run.figures();
  const put = (id, value, text) => { $(id).textContent = value === null || Number.isNaN(value) ? "–" : text(value); };
  put("f-rate", f.rate, (v) => v.toFixed(1));
  put("f-accepted", f.accepted, (v) => `${Math.round(v * 100)} %`);
  put("f-length", f.length, (v) => v.toFixed(2));
  put("f-bytes", f.bytes, (v) => String(Math.round(v)));
  put("f-first", f.first, (v) => (v < 1 ? `${Math.round(v * 1000)} ms` : `${v.toFixed(1)} s`));
  put("f-rounds", f.rounds, String);
  put("f-server", run.server || null, (v) => v.replace(/^\w+:\/\//, ""));
}

function busy(on) {
  composer.classList.toggle("busy", on);
  $("send").setAttribute("aria-label", on ? "Stop" : "Send");
  $("send").title = on ? "Stop (Esc)" : "Send (Enter)";
  ready();
  if (on) {
    const tick = () => { if (!current) return; if (shown?.run === current.run) figures(current.run); setTimeout(tick, 250); };
    tick();
  } else if (document.activeElement === document.body) prompt.focus();
}

function ready() {
  $("send").disabled = !current && !prompt.value.trim();
}

function link(run, problem) {
  const lost = problem ? ![400, 401, 404, 413, 429].includes(problem.status) : run && run.losses.some((loss) => loss.to === null);
  $("link").dataset.state = lost ? "lost" : current ? "busy" : info ? "up" : "idle";
  $("link-text").textContent = lost ? "server lost" : (run?.server || info?.server || "connecting").replace(/^\w+:\/\//, "");
  $("link").title = `Server: ${run?.server || info?.server || "unknown"}`;
}

let sticks = true, sticking = 0, lastTop = 0;

/** Keep the end in sight, unless the user has scrolled away; once a frame, since it costs a layout. */
function stick() {
  sticking ||= requestAnimationFrame(() => {
    sticking = 0;
    if (sticks) log.scrollTop = log.scrollHeight;
  });
}

log.addEventListener("scroll", () => {
  if (log.scrollTop + log.clientHeight > log.scrollHeight - 60) sticks = true;
  else if (log.scrollTop < lastTop - 2) sticks = false; // only the user goes up
  lastTop = log.scrollTop;
}, { passive: true });

function button(text, act) {
  const node = make("button", "", text);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

// ---- who answers ----

async function introduce() {
  try {
    const response = await fetch("sled/info", { headers: headers(token) });
    if (response.status === 401) return void askToken(introduce);
    if (!response.ok) throw await refusal(response);
    info = await response.json();
  } catch (error) {
    $("link").dataset.state = "lost";
    $("link-text").textContent = error instanceof Refused ? error.message : "no answer";
    return;
  }
  for (const [id, text] of Object.entries({ "model": info.model, "drafter": info.drafter, "s-model": info.model, "s-drafter": info.drafter, "s-server": info.server, "s-context": `${info.max_positions.toLocaleString("en")} tokens` })) $(id).textContent = text;
  document.title = `${info.model} · sled chat`;
  link(null);
}

function askToken(then) {
  const dialog = $("ask-token");
  dialog.addEventListener("close", () => {
    token = $("token").value.trim();
    try { sessionStorage.setItem("sled-token", token); } catch { /* kept in this page only */ }
    if (token) introduce().then(then === introduce ? undefined : then);
  }, { once: true });
  if (!dialog.open) dialog.showModal();
}

// ---- the user's hands ----

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (current) return current.stop.abort();
  const text = prompt.value;
  prompt.value = "";
  grow();
  ready();
  return ask(text);
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!current) composer.requestSubmit();
});
prompt.addEventListener("input", () => { grow(); ready(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && current && !document.querySelector("dialog[open]")) current.stop.abort();
});
$("ideas").addEventListener("click", (event) => { if (event.target.matches("button")) ask(event.target.textContent); });
$("new").addEventListener("click", () => {
  current?.stop.abort();
  talk.length = 0;
  messages.replaceChildren();
  $("welcome").hidden = false;
  dock.hidden = true;
  shown = null;
  prompt.focus();
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("fold").addEventListener("click", () => {
  const open = $("timeline").hidden;
  $("timeline").hidden = $("picked").hidden = !open;
  $("fold").setAttribute("aria-expanded", String(open));
  if (open) timeline.draw();
});

bind($("settings"), values);
ready();
introduce();
prompt.focus();
