"""Whether the server decodes by itself: what a stream brings, beside what drafts bring on the same text.

Pure: no sockets, clock or randomness; times are told. docs/spec/sled-windows.md, "The server by itself".
"""

from __future__ import annotations

from sled.turnaround import Turnaround

FOLLOW = 1 / 32  # of the rounds of late, with each round
TEXT_FADE = 0.95  # of what drafts brought on this text, with each round,
TEXT_ROUNDS = 8.0  # against so many rounds as they were of late
GAIN = 1.08  # times as fast must the other way promise to be
STAY_GAIN = 1.02  # the same for drafts: they spare the server forwards
LINK_GAIN = 0.15  # and so much more where all is link: coming back costs a turnaround
CROWD_GAIN = 0.05  # and so much more for each other session of a forward, of a stream: drafts save forwards
MOST_CROWD = 5.0
SILENT_ROUNDS = 2  # for which the drafter had nothing to say, from which on the next is thought to bring one token
HORIZON = 64  # tokens, over which a stream's first turnaround is thought to be earned again
LEAST_TOKENS = 8  # that are still wanted, or nothing is tried
FIRST_FORWARD_S, FIRST_ROUND_TOKENS = 0.03, 3.0  # that a forward takes and a round brings, before anything is known
FIRST_TOKENS = 8  # of a stream then, if no round is compared earlier
FIRST_DOUBT = 1.0  # more of a gain asked of the first stream after one round, half of it after two, and so on
FIRST_GAIN = 1.5  # times as fast must drafts promise to be by their confidences alone
TRIAL_TOKENS = 4  # of a stream, to see what one brings
FIRST_TRIAL = 3  # rounds of drafts, before a first stream is tried for what it may bring
TRIAL_ROUNDS = 2  # of drafts
FIRST_SHARE = 0.02  # of the time so far, that the first stream may cost where nobody knows what the link takes
TRIAL_SHARE = 0.005  # of the time since the last one, that a trial may cost
DOUBT = 1.4  # times what the other way brought when it was tried last is what it may bring now
DOUBT_TOKENS = 500  # of a stream's, in whose time doubt grows to that
STREAM_TOKENS = 24.0  # tokens that the mean of a stream goes back,
AGAIN_TOKENS = 3.0  # and that all streams before count as
STALL = 4.0  # what takes so many times the usual counts as no more than that
FIRST_SHADOWS = 8  # rounds drafted beside the first tokens of an answer; then one
SHADOW_TOKENS = 16  # so many tokens after the one before,
SHADOW_COST = 40.0  # or so many times what a draft takes, if that is sooner: a tenth of the time then
KNOWN_ROUNDS = 32  # after which it counts that a draft takes longer than a token of the stream, so that none can pay
TOLD_TOKENS = 1.5  # that what the server told of a token counts as, beside timed ones: too few to know a stall by
PROMISE_ROUNDS = 2.0  # that what drafts are thought to bring, before any was compared, counts as
LOOK_SHARE = 0.03  # of a first answer's time by a stream, that a first round of drafts may cost
OVERLAP_FADE = 1 / 48
OVERLAP_ROUNDS = 4.0  # rounds without overlap, that are thought of at first


class ByItself:
    """Two rates kept beside each other: of drafts, and of a stream.

    What drafts bring is measured where they are sent; while the server decodes, rounds are drafted in its shadow and
    compared with what it says, at the price that they would have had. A stream's tokens are timed. Either is tried
    again if it might be ahead and the trial costs little of the time since.

    Attributes:
        token_s: seconds that a token of a stream takes; 0 before the first one.
        link_s: what of a turnaround was not the token's forward, when a stream was tried last.
        promise: tokens and seconds of a round, as thought before there were any; 0 where nothing was told.
    """

    def __init__(self, turnaround: Turnaround) -> None:
        self._turnaround = turnaround
        self.token_s = self.link_s = 0.0
        self._weight = 0.0
        self.promise = (0.0, 0.0)
        self._tokens = self._seconds = 0.0  # of drafts on this text
        self._away = self._rounds_here = 0.0  # of those rounds: what one of no drafts was thought to take; how many
        self._mean_tokens = self._mean_seconds = self._mean_away = 0.0  # of a round of late
        self._mean_weight = 0.0
        self._really = self._alone = OVERLAP_ROUNDS * 0.1  # seconds of rounds, and if nothing had overlapped
        self._crowd = 1.0
        self._since_stream_s = self._since_round_s = 0.0
        self._rounds = 0  # heard of so far
        self._rounds_left = 0  # of a trial of drafts
        self._trying = self._reads = False
        self._silent = 0  # rounds for which the drafter had nothing to say, one after the other
        self._began_at = self._last_at = self._timed_at = 0.0
        self._streamed = self._untimed = 0
        self._so_far = (0.0, 0.0)  # of a round in the shadow: tokens, seconds
        self._shadows = 0  # in this answer
        self._since_shadow = 0
        self._since_shadow_s = 0.0  # in whichever answer it was

    # -- what drafts bring

    @property
    def draft_rate(self) -> float:
        """Tokens per second by drafts on this text, over the link as it is now; 0 before anything is known."""
        more, more_s = self._so_far
        thought, thought_s = (PROMISE_ROUNDS / (1 + self._rounds) * each for each in self.promise)
        if not self._rounds:
            if thought_s > 0.0:
                return (thought + more) / (thought_s + more_s)
            return more / (FIRST_GAIN * more_s) if more_s > 0.0 else 0.0
        away_s, overlap = self._turnaround.of(0), self.overlap
        seconds = self._seconds + overlap * (self._rounds_here * away_s - self._away)
        mean = self._mean_seconds + overlap * (away_s - self._mean_away)
        seconds = max(seconds, 0.1 * self._seconds) + TEXT_ROUNDS * max(mean, 0.1 * self._mean_seconds)
        if seconds <= 0:
            return 0.0
        seconds += thought_s
        tokens = self._tokens + TEXT_ROUNDS * self._mean_tokens + thought
        return max(tokens / seconds, (tokens + more) / (seconds + more_s))

    @property
    def _link_share(self) -> float:
        """Of a turnaround, as far as a stream has told; there is no haste where going to and fro costs."""
        return self.link_s / (self.link_s + self.token_s) if self.token_s else 1.0

    @property
    def overlap(self) -> float:
        """What rounds take by what they would one after the other."""
        return min(max(self._really / self._alone, 0.3), 1.3)

    def expect(self, token_s: float, link_s: float, promise: tuple[float, float]) -> None:
        """What is thought before anything was tried.

        Args:
            token_s: seconds of a token that the server decodes by itself.
            link_s: of a turnaround beside that.
            promise: tokens and seconds of a round of drafts.
        """
        if not self._weight:
            self.token_s, self.link_s, self._weight = token_s, link_s, TOLD_TOKENS
        if not self._rounds:
            self.promise = promise

    def away(self, took_s: float, usual_s: float) -> None:
        """A round was away so long, and was thought to be for `usual_s`: what was told is not more than that allows."""
        self.token_s = min(self.token_s, took_s)
        if not self._rounds and took_s < usual_s:
            tokens, seconds = self.promise
            self.promise = tokens, seconds * took_s / usual_s

    def sent(self, *, silent: bool) -> None:
        """A round was decided, for which the drafter was asked and had nothing to say, or not."""
        self._silent = self._silent + 1 if silent else 0

    def answer(self) -> None:
        """Another text begins."""
        self._silent = 0
        self._tokens = self._seconds = self._away = self._rounds_here = 0.0
        self._so_far = (0.0, 0.0)
        self._shadows = self._since_shadow = 0

    def told(self, alone_s: float, passed_s: float, batch: int) -> None:
        """A round was decided that took `passed_s`, and would have taken `alone_s` had nothing overlapped."""
        self._really += passed_s - OVERLAP_FADE * self._really
        self._alone += alone_s - OVERLAP_FADE * self._alone
        self._since_stream_s += passed_s
        self._since_round_s = 0.0
        self._rounds_left = max(self._rounds_left - 1, 0)
        self._met(batch)

    def count(self, tokens: float, seconds: float, mean_tokens: float, mean_seconds: float) -> None:
        """A round, sent or in the shadow, brought so much, and rounds of late in the mean."""
        away_s = self._turnaround.of(0)
        self._tokens = TEXT_FADE * self._tokens + tokens
        self._seconds = TEXT_FADE * self._seconds + seconds
        self._away = TEXT_FADE * self._away + away_s
        self._rounds_here = TEXT_FADE * self._rounds_here + 1.0
        self._mean_weight = (1.0 - FOLLOW) * self._mean_weight + 1.0
        self._mean_away += (away_s - self._mean_away) / self._mean_weight
        self._rounds += 1
        self._mean_tokens, self._mean_seconds = mean_tokens, mean_seconds

    def shadowing(self, tokens: float, seconds: float) -> None:
        """A round in the shadow has brought so much so far, and may bring more."""
        self._so_far = (tokens, seconds)

    def shadowed(self) -> None:
        """A round in the shadow was compared."""
        self._so_far = (0.0, 0.0)
        self._shadows += 1
        self._since_shadow = 0
        self._since_shadow_s = 0.0

    def wants_shadow(self, draft_s: float, *, reads: bool = False) -> bool:
        """Whether it is time to draft a round in the shadow of the stream, at so many seconds a token.

        Args:
            draft_s: seconds to draft a token.
            reads: much is to be read before, which is best begun while the first token is still on its way.
        """
        if not self._streamed and not (self.token_s and (reads or not self._rounds)):
            return False
        if self._trying or (self.draft_rate and not self.token_s):
            return False  # the first token tells how long the link is, and one that waits for a draft would seem slow
        if self._rounds >= KNOWN_ROUNDS and draft_s >= self.token_s:
            return self._since_shadow_s >= SHADOW_COST * draft_s  # the drafter's own speed may change
        waits = min(SHADOW_TOKENS * self.token_s, SHADOW_COST * draft_s)
        return self._shadows < FIRST_SHADOWS or self._since_shadow * self.token_s >= waits

    def _met(self, batch: int) -> None:
        self._crowd += (max(batch, 1) - self._crowd) / 16

    # -- what a stream brings

    def begun(self, now: float, *, reads: bool = False) -> None:
        """A stream is asked for, before whose first token the server reads the prompt or not."""
        self._reads, self._silent = reads, 0
        self._began_at = self._last_at = now
        self._streamed = self._untimed = 0
        self._so_far = (0.0, 0.0)
        self._weight = min(self._weight, AGAIN_TOKENS)

    def streamed(self, tokens: int, now: float, batch: int, *, waited: bool) -> None:
        """So many tokens of it came; unless they were waited for, they may have come earlier."""
        if not self._streamed:
            if tokens == 1 and waited:  # more are told again, and took no forward
                self.away(now - self._began_at, self._turnaround.of(0))
                self._turnaround.told(0, now - self._began_at, reads=self._reads)
            self._timed_at = now
        else:
            self._untimed += tokens
        if waited and self._untimed:
            self._time(self._untimed, now)
        self._since_round_s += now - self._last_at
        self._since_shadow_s += now - self._last_at
        self._streamed += tokens
        self._since_shadow += tokens
        self._last_at = now
        self._met(batch)

    def _time(self, tokens: int, now: float) -> None:
        each_s = (now - self._timed_at) / tokens
        if self._weight >= 2.0:
            each_s = min(each_s, STALL * self.token_s)
        self._weight = min(self._weight + tokens, STREAM_TOKENS)
        self.token_s += (each_s - self.token_s) * min(tokens / self._weight, 1.0)
        self.link_s = max(self._turnaround.of(0) - self.token_s, 0.0)
        self._since_stream_s = 0.0
        self._timed_at, self._untimed = now, 0

    # -- which of both

    @property
    def _gain(self) -> float:
        return GAIN + CROWD_GAIN * (min(self._crowd, MOST_CROWD) - 1.0)

    def begins(self, remaining: int, ping_s: float) -> bool:
        """Whether the server is to decode from here on.

        Args:
            remaining: tokens still wanted.
            ping_s: what the link alone is thought to take there and back; not a number if nobody knows. It only says
                whether a first stream is worth a trial: under load it is far too long.
        """
        rate, away_s = self.draft_rate, self._turnaround.of(0)
        self._trying = False
        if remaining < LEAST_TOKENS or self._rounds_left:
            return False
        if not self._rounds and self.promise[1] and self._may_look(remaining):
            return False
        if not rate or not (self._rounds or self.token_s):  # a round in the shadow was begun, and nothing compared
            return ping_s + FIRST_FORWARD_S >= FIRST_ROUND_TOKENS * FIRST_FORWARD_S
        token_s = self.token_s or (max(away_s - ping_s, away_s / 10) if ping_s >= 0.0 else away_s)
        tokens = min(remaining, HORIZON)
        if self._silent >= SILENT_ROUNDS:
            rate = min(rate, 1.0 / away_s)
        gain = self._gain if self.token_s else self._gain + FIRST_DOUBT / self._rounds
        if tokens >= gain * rate * (max(away_s - token_s, 0.0) + tokens * token_s):
            return True
        # What changed since is the link, or the server: whichever speaks for a stream is thought of.
        best_s, share, age = token_s, TRIAL_SHARE, 1.0
        if self.token_s:
            best_s = min(token_s, max(away_s - self.link_s, token_s / 4))
            age = min(self._since_stream_s / (DOUBT_TOKENS * token_s), 1.0)
        elif not ping_s >= 0.0:
            best_s, share = away_s / 4, FIRST_SHARE
        if not self.token_s and self._rounds < FIRST_TRIAL:
            return False
        cost_s = away_s + (TRIAL_TOKENS - 1) * token_s - TRIAL_TOKENS / rate
        may_be_ahead = self._gain * rate * best_s <= 1.0 + (DOUBT - 1.0) * age
        self._trying = may_be_ahead and cost_s <= share * self._since_stream_s
        return self._trying

    def _may_look(self, remaining: int) -> bool:
        """Whether a first round of drafts costs so little that it is worth knowing what one brings."""
        tokens, seconds = self.promise
        return seconds - tokens * self.token_s <= LOOK_SHARE * (self.link_s + remaining * self.token_s)

    def stays(self, remaining: int, zero_link_rate: float) -> bool:
        """Whether the server is to go on, `remaining` tokens being wanted.

        Args:
            remaining: tokens.
            zero_link_rate: tokens per second that drafts would bring if the link took no time.
        """
        rate, tokens = self.draft_rate, min(remaining, HORIZON)
        if self._streamed < 2 or not self.token_s or (self._trying and self._streamed < TRIAL_TOKENS):
            return True
        if not rate:
            return self._streamed < FIRST_TOKENS
        tried, self._trying = self._trying, False
        away_s = self.link_s / tokens if not tried else 0.0
        gain = 1.0 / self._gain
        if not tried:
            gain = STAY_GAIN + LINK_GAIN * self._link_share
        if self.token_s > gain / rate + away_s:
            return False
        return not self._tries_drafts(rate, zero_link_rate) or remaining < LEAST_TOKENS

    def _tries_drafts(self, rate: float, zero_link_rate: float) -> bool:
        cost_s = self.link_s + TRIAL_ROUNDS * self._mean_tokens * max(1 / rate - self.token_s, 0.0)
        if DOUBT * zero_link_rate * self.token_s <= 1.0 or cost_s > TRIAL_SHARE * self._since_round_s:
            return False
        self._rounds_left = TRIAL_ROUNDS
        return True
