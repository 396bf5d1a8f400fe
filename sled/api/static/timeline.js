// Rounds in time. Above, each round's tokens as cells: accepted from the bottom, then the target's own, then rejected ones.
// Below, a bar from when it was sent until its verdict came.

const AXIS = 17;
const LANE = 7;
const PAD = 14;
const COLOURS = ["ink", "soft", "faint", "line", "mine", "drafted", "own", "wasted", "spec", "accent", "card"];
const LEGEND = [["drafted first", "accepted"], ["own", "the model's own"], ["wasted", "rejected"], ["flying", "on its way"]];

export class Timeline {
  /** `pick` is told the round that is pointed at, or null. */
  constructor({ scroller, spread, canvas, line, pick }) {
    Object.assign(this, { scroller, spread, canvas, line, pick });
    this.run = null;
    this.scale = 0;
    this.chosen = null;
    this._drawing = 0;
    this._follow = true;
    this._still = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.draw()).observe(scroller);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this._colours = null; this.draw(); });
    scroller.addEventListener("scroll", () => {
      this._follow = scroller.scrollLeft + scroller.clientWidth > scroller.scrollWidth - 30;
      this.draw();
    });
    scroller.addEventListener("pointermove", (event) => this._choose(this._at(event)));
    scroller.addEventListener("pointerdown", (event) => this._choose(this._at(event)));
    scroller.addEventListener("pointerleave", () => this._choose(null));
    scroller.addEventListener("blur", () => this._choose(null));
    scroller.addEventListener("keydown", (event) => this._key(event));
    this._tell();
  }

  show(run) {
    if (run === this.run) return;
    this.run = run;
    this.scale = 0;
    this._follow = true;
    this._choose(null);
    this.draw();
  }

  /** Draw soon; and on and on while the answer is under way. */
  draw() {
    this._drawing ||= requestAnimationFrame(() => {
      this._drawing = 0;
      if (!this.run || !this.scroller.clientWidth) return;
      this._paint();
      if (this.run.endedAt === null || this._moving) this.draw();
    });
  }

  /** Pixels a second: so that rounds can be told from each other, and a finished answer fills the width. */
  _rescale(width) {
    const rounds = this.run.rounds.filter((round) => round.end !== null);
    const gaps = rounds.map((round, i) => round.end - (i ? rounds[i - 1].end : round.sent)).filter((gap) => gap > 0).sort((a, b) => a - b);
    const typical = gaps.length ? gaps[gaps.length >> 1] : 0.2;
    const room = (width - 2 * PAD) / Math.max(this.run.span(), 0.2);
    let wanted = Math.min(Math.max(24 / typical, 24), 1500);
    if (this.run.endedAt !== null) wanted = Math.max(wanted, Math.min(room, 64 / typical));
    const step = this._still.matches || !this.scale ? 1 : 0.12;
    this.scale = this.scale ? this.scale + (wanted - this.scale) * step : wanted;
    this._moving = Math.abs(wanted - this.scale) > wanted * 0.004;
    if (!this._moving) this.scale = wanted;
  }

  _paint() {
    const { scroller, canvas, run } = this;
    const [width, height] = [scroller.clientWidth, scroller.clientHeight];
    this._rescale(width);
    const total = Math.max(width, Math.ceil(run.span() * this.scale + 2 * PAD + (run.endedAt === null ? 20 : 0)));
    this.spread.style.width = `${total}px`;
    if (this._follow && run.endedAt === null) scroller.scrollLeft = total;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    this._colours ??= Object.fromEntries(COLOURS.map((name) => [name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()]));
    const left = scroller.scrollLeft;
    const x = (seconds) => PAD + seconds * this.scale - left;
    this._axis(g, x, width, height);
    this._gone(g, x, height);
    const base = height - AXIS - 2 * (LANE + 3) - 5;
    this._cells = [];
    const deepest = Math.max(6, ...run.rounds.map((round) => Math.max(round.drafted + 1, round.tokens)));
    const cell = Math.min(10, (base - 6) / deepest);
    let before = 0;
    for (const round of run.rounds) {
      const from = x(Math.max(round.sent, before));
      const to = x(round.end ?? run.now());
      if (round.end !== null) before = Math.max(before, round.end);
      this._cells.push([from, Math.max(to, from + 3), round]);
      if (Math.max(to, x(run.now())) < -40 || from > width + 40) continue;
      if (round === this.chosen) this._box(g, from - 1, 2, Math.max(to - from, 3) + 1, height - AXIS - 2, this._colours.mine, 4);
      this._column(g, round, from, Math.max(to - from - 2, 2), base, cell);
      this._bar(g, round, x(round.sent), to, base + 6 + round.lane * (LANE + 3));
    }
    for (const at of run.decoded) this._box(g, x(at) - 2, base - cell, 4, cell - 1.5, this._colours.own, 1.5);
    if (run.endedAt === null) this._box(g, x(run.now()), 4, 1.5, height - AXIS - 4, this._colours.accent, 0);
  }

  _column(g, round, left, width, base, cell) {
    const own = Math.max(0, round.tokens - round.accepted);
    const flying = round.end === null;
    if (!flying && !round.tokens) return; // nobody looked at these: their bar says so
    const size = cell - Math.min(1.5, cell / 4);
    const put = (index, colour, hollow) => {
      const top = base - (index + 1) * cell;
      if (!hollow) return this._box(g, left, top, width, size, colour, 2);
      g.strokeStyle = colour;
      g.lineWidth = 1;
      g.globalAlpha = 0.75;
      g.beginPath();
      g.roundRect(left + 0.5, top + 0.5, Math.max(width - 1, 1), Math.max(size - 1, 1), 2);
      g.stroke();
      g.globalAlpha = 1;
      return undefined;
    };
    if (flying) {
      g.globalAlpha = 0.55;
      for (let i = 0; i < round.drafted; i += 1) this._box(g, left, base - (i + 1) * cell, Math.max(width, 6), size, this._colours.spec, 2);
      g.globalAlpha = 1;
      return;
    }
    let index = 0;
    for (let i = 0; i < round.accepted; i += 1) put(index++, this._colours.drafted);
    for (let i = 0; i < own; i += 1) put(index++, this._colours.own);
    for (let i = round.accepted; i < round.drafted; i += 1) put(index++, this._colours.wasted, true);
  }

  _bar(g, round, from, to, top) {
    const width = Math.max(to - from - 2, 2);
    const flying = round.end === null;
    const failed = round.end !== null && !round.tokens;
    g.globalAlpha = flying ? 0.9 : failed ? 0.55 : 0.5;
    this._box(g, from, top, width, LANE, flying ? this._colours.spec : failed ? this._colours.wasted : this._colours.faint, LANE / 2);
    g.globalAlpha = 1;
    if (!flying || this._still.matches) return;
    g.save();
    g.beginPath();
    g.roundRect(from, top, width, LANE, LANE / 2);
    g.clip();
    g.strokeStyle = this._colours.card;
    g.globalAlpha = 0.55;
    g.lineWidth = 3;
    const phase = (performance.now() / 30) % 10;
    for (let at = from - 20 + phase; at < from + width + 10; at += 10) {
      g.beginPath();
      g.moveTo(at, top + LANE + 2);
      g.lineTo(at + LANE + 4, top - 2);
      g.stroke();
    }
    g.restore();
  }

  _axis(g, x, width, height) {
    const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300].find((each) => each * this.scale >= 72) ?? 600;
    g.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    g.textBaseline = "middle";
    const first = Math.max(0, Math.floor((-x(0)) / this.scale / step));
    for (let i = first; x(i * step) < width; i += 1) {
      g.fillStyle = this._colours.line;
      g.fillRect(Math.round(x(i * step)), 0, 1, height - AXIS);
      g.fillStyle = this._colours.faint;
      g.fillText(`${Number((i * step).toFixed(2))} s`, x(i * step) + (i ? -8 : 0), height - AXIS / 2);
    }
    g.fillStyle = this._colours.line;
    g.fillRect(0, height - AXIS, width, 1);
  }

  /** Where no server could be asked, and where one took over. */
  _gone(g, x, height) {
    for (const loss of this.run.losses) {
      const [from, to] = [x(loss.from), x(loss.to ?? this.run.now())];
      g.globalAlpha = 0.16;
      this._box(g, from, 0, Math.max(to - from, 3), height - AXIS, this._colours.wasted, 0);
      g.globalAlpha = 1;
      g.fillStyle = this._colours.wasted;
      g.fillText("server lost", from + 5, 9);
    }
    for (const open of this.run.opens.slice(1)) {
      g.fillStyle = this._colours.accent;
      g.fillRect(x(open.at), 0, 1.5, height - AXIS);
      g.fillText(open.server.replace(/^\w+:\/\//, ""), x(open.at) + 5, 22);
    }
  }

  _box(g, left, top, width, height, colour, radius) {
    g.fillStyle = colour;
    g.beginPath();
    g.roundRect(left, top, width, height, Math.min(radius, width / 2, height / 2));
    g.fill();
  }

  _at(event) {
    const at = event.clientX - this.canvas.getBoundingClientRect().left;
    return this._cells?.find(([from, to]) => at >= from - 1 && at < to + 1)?.[2] ?? null;
  }

  _key(event) {
    const rounds = this.run?.rounds ?? [];
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this._choose(null);
    if (!step || !rounds.length) return;
    event.preventDefault();
    const now = this.chosen ? rounds.indexOf(this.chosen) + step : step < 0 ? rounds.length - 1 : 0;
    const round = rounds[Math.min(Math.max(now, 0), rounds.length - 1)];
    this._choose(round);
    const at = PAD + round.sent * this.scale;
    if (at < this.scroller.scrollLeft + 40 || at > this.scroller.scrollLeft + this.scroller.clientWidth - 40) this.scroller.scrollLeft = at - this.scroller.clientWidth / 2;
  }

  _choose(round) {
    if (round === this.chosen) return;
    this.chosen = round;
    this._tell();
    this.pick(round);
    this.draw();
  }

  _tell() {
    const round = this.chosen;
    this.line.replaceChildren();
    if (!round) {
      for (const [key, text] of LEGEND) this.line.append(square(key), text);
      return;
    }
    const number = this.run.rounds.indexOf(round) + 1;
    this.line.append(`Round ${number}, sent at ${round.sent.toFixed(2)} s`);
    if (round.end === null) return void this.line.append(square("flying"), `${round.drafted} guessed, on its way`);
    this.line.append(`, verdict after ${Math.round((round.end - round.sent) * 1000)} ms`);
    this.line.append(square("drafted"), round.drafted ? `${round.accepted} of ${round.drafted} accepted` : "nothing guessed");
    if (round.tokens) this.line.append(square("own"), `${round.tokens - round.accepted} of its own`);
    else this.line.append(square("wasted"), round.lost ? "broken off" : round.hoped ? "its hope failed" : "no verdict");
    if (round.limit !== undefined) this.line.append(` · next at most ${round.limit} · ${round.batch} in the batch`);
  }
}

function square(kind) {
  const node = document.createElement("span");
  node.className = `key ${kind}`;
  return node;
}
