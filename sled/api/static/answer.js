// One answer on the page: settled paragraphs as Markdown, what is being written as tokens, speculative text behind it.

import { render, settled } from "./markdown.js";

export class AnswerView {
  constructor() {
    this.root = make("article", "answer");
    this.root.setAttribute("aria-busy", "true");
    this.root.setAttribute("aria-label", "Answer");
    this.done = make("div", "done");
    this.live = make("div", "live");
    this.told = make("span");
    this.open = make("span", "unverified");
    this.spec = make("span", "spec caret");
    this.spec.setAttribute("aria-hidden", "true");
    this.waiting = make("p", "waiting");
    this.waiting.append("waiting", make("i"), make("i"), make("i"));
    this.notice = make("p", "notice");
    this.notice.hidden = true;
    this.foot = make("div", "foot");
    this.live.append(this.told, this.open, this.spec);
    this.root.append(this.waiting, this.done, this.live, this.notice);
    this.tokens = [];
    this.text = "";
    this.asTokens = false;
    this._unverified = [];
    this._settled = 0;
    this._before = "";
  }

  take(event) {
    switch (event.type) {
      case "Queued":
        if (event.ahead) this.waiting.firstChild.data = `${event.ahead} before you`;
        break;
      case "Opened":
        this.notice.hidden = true;
        break;
      case "Speculative":
        if (event.text) this.waiting.hidden = true;
        this.spec.textContent = event.text;
        break;
      case "RoundEnded":
        if (event.tokens) this._before = this.spec.textContent;
        break;
      case "Token": this._token(event); break;
      case "Unverified":
        this.waiting.hidden = true;
        this._unverified.push(event);
        this._showUnverified();
        this.say("No server answers: wavy text is a guess that nobody has checked yet.");
        break;
      case "Retracted":
        this._unverified = this._unverified.filter((each) => each.pos < event.from_pos);
        this._showUnverified();
        break;
      case "ServerLost":
        this.say("The server was lost; the answer goes on as soon as one can be asked.");
        break;
    }
  }

  /** It is over; text that nobody verified stays marked. */
  finish() {
    this.waiting.hidden = true;
    this.spec.textContent = "";
    this.spec.hidden = true;
    this.root.setAttribute("aria-busy", "false");
    this._rebuild();
    this.root.append(this.foot);
  }

  say(text) {
    this.notice.textContent = text;
    this.notice.hidden = false;
  }

  showTokens(on) {
    this.asTokens = on;
    this.root.classList.toggle("tokens", on);
    this._rebuild();
  }

  /** Mark the tokens at these positions; where they have become text, nothing is marked. */
  light(from, to) {
    for (const token of this.tokens) token.node?.classList.toggle("lit", token.pos >= from && token.pos < to);
  }

  _token(event) {
    this.waiting.hidden = true;
    if (this._unverified.length && event.pos >= this._unverified[0].pos) {
      this._unverified.shift();
      this._showUnverified();
    }
    const token = { pos: event.pos, text: event.text, drafted: event.drafted, at: this.text.length, was: "" };
    if (this._before.startsWith(event.text)) this._before = this._before.slice(event.text.length);
    else {
      if (!event.drafted && event.text.trim() && this._before.trim()) token.was = /^\s*\S+/.exec(this._before)[0].trim();
      this._before = "";
    }
    const guess = this.spec.textContent;
    this.spec.textContent = guess.startsWith(event.text) ? guess.slice(event.text.length) : "";
    this.tokens.push(token);
    this.text += event.text;
    if (!event.text) return;
    if (!this.asTokens && settled(this.text) > this._settled) this._rebuild();
    else this._append(token, true);
  }

  _append(token, fresh) {
    const from = Math.max(token.at, this._settled);
    const text = this.text.slice(from, token.at + token.text.length);
    if (!text) return;
    const bare = text.trimStart(); // a mark on the space before a word would stay behind at the end of a line
    if (bare) this.told.append(text.slice(0, text.length - bare.length));
    token.node = make("span", `token ${token.drafted ? "drafted" : "own"}`, bare || text);
    if (token.was) token.node.title = `guessed here: ${token.was}`;
    if (fresh && token.was) {
      this.fixed?.classList.add("stale"); // one struck-out guess at a time
      this.fixed = token.node;
      token.node.classList.add("fixed");
      token.node.dataset.was = token.was;
    } else if (fresh && token.drafted) token.node.classList.add("fresh");
    this.told.append(token.node);
  }

  _rebuild() {
    const busy = this.root.getAttribute("aria-busy") === "true";
    this._settled = this.asTokens ? 0 : busy || this._unverified.length ? settled(this.text) : this.text.length;
    this.done.replaceChildren(render(this.text.slice(0, this._settled)));
    this.told.replaceChildren();
    for (const token of this.tokens) {
      token.node = null;
      if (token.at + token.text.length > this._settled) this._append(token, false);
    }
  }

  _showUnverified() {
    this.open.textContent = this._unverified.map((each) => each.text).join("");
  }
}

/** An element with a class and text. */
export function make(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}
