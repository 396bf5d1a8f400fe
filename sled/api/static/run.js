// What happened to one answer, in numbers: kept from events, read by the figures and the timeline.

export class Run {
  constructor() {
    this.rounds = [];
    this.losses = []; // {from, to, reason}
    this.opens = []; // {at, server}
    this.decoded = []; // times of tokens that the server decoded by itself
    this.server = "";
    this.tokens = 0;
    this.drafted = 0;
    this.accepted = 0;
    this.bytes = null;
    this.rate = null;
    this.first = null;
    this.endedAt = null;
    this._covered = 0; // tokens that rounds have brought and events still have to
    this._offset = Infinity;
  }

  /** Seconds since the answer began, by the events' clock. */
  now() {
    if (this.endedAt !== null) return this.endedAt;
    return this._offset === Infinity ? 0 : performance.now() / 1000 - this._offset;
  }

  /** How far the rounds go in time. */
  span() {
    return this.now();
  }

  take(event) {
    if (typeof event.at_s === "number") this._offset = Math.min(this._offset, performance.now() / 1000 - event.at_s);
    switch (event.type) {
      case "Opened":
        this.server = event.server;
        this.opens.push({ at: event.at_s, server: event.server });
        this._mend(event.at_s);
        break;
      case "RoundSent":
        this.rounds.push({ base: event.base, drafted: event.drafted, hoped: event.hoped, sent: event.at_s, end: null, accepted: 0, tokens: 0, lane: this._lane(event.at_s) });
        break;
      case "RoundEnded": this._ended(event); break;
      case "ServerLost":
        this.losses.push({ from: event.at_s, to: null, reason: event.reason });
        break;
      case "Token":
        this.tokens += 1;
        this.first ??= this.now();
        if (this._covered > 0) this._covered -= 1;
        else this.decoded.push(this.now());
        break;
      case "Answer":
        this.bytes = event.stats.bytes_per_token;
        this.rate = event.stats.tokens_per_s;
        this.first = event.stats.first_token_s;
        break;
    }
  }

  /** It is over, however it ended. */
  end() {
    if (this.endedAt !== null) return;
    const now = this.now();
    this._mend(now);
    for (const round of this.rounds) if (round.end === null) { round.end = now; round.lost = true; }
    this.endedAt = Math.max(now, 0.001);
  }

  figures() {
    const rounds = this.rounds.filter((round) => round.end !== null && round.tokens);
    const brought = rounds.reduce((sum, round) => sum + round.tokens, 0);
    const went = this.now();
    return {
      rate: this.rate ?? (this.tokens && went > 0.2 ? this.tokens / went : null),
      accepted: this.drafted ? this.accepted / this.drafted : null,
      length: rounds.length ? brought / rounds.length : null,
      bytes: this.bytes,
      first: this.first,
      rounds: this.rounds.length,
    };
  }

  _ended(event) {
    let round = this.rounds.findLast((each) => each.end === null && each.base === event.base);
    if (!round) {
      round = { base: event.base, drafted: event.drafted, hoped: false, sent: event.sent_s, lane: 0 };
      this.rounds.push(round);
    }
    Object.assign(round, { end: event.at_s, drafted: event.drafted, accepted: event.accepted, tokens: event.tokens, limit: event.window_limit, batch: event.batch });
    if (event.tokens) this.drafted += event.drafted;
    this.accepted += event.accepted;
    this._covered += event.tokens;
  }

  _lane(at) {
    const taken = new Set(this.rounds.filter((round) => round.end === null || round.end > at).map((round) => round.lane));
    return taken.has(0) ? 1 : 0;
  }

  _mend(at) {
    for (const loss of this.losses) loss.to ??= at;
  }
}
