"""Windows that pay: one more draft while it brings more tokens per second than the answer has been coming at.

Pure: no sockets, clock or randomness; times are told. The derivation is in docs/spec/sled-windows.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sled.by_itself import FIRST_FORWARD_S
from sled.calibration import ANYWHERE
from sled.foresight import DRAFT_S, best_round, forwards
from sled.learned import FIRST_ROUNDS, Learned
from sled.messages import MAX_WINDOW
from sled.proposal import LITTLE

AHEAD = 8  # further drafts that are thought of at once, since turnarounds rise in steps
FOLLOW = 1 / 32  # of the rate, with each round
FIRST_SURVIVAL = 0.2  # before there is a rate a draft is wanted that is this likely,
FIRST_TOKENS = 2.0  # and worth its time, if a round brings so many
HOPE = 0.15  # a round is sent on hope that is this likely
LEAST = 0.02  # less survival than this is no use, however cheap
QUEUED_DRAFTS = 8  # a verdict may be seen a draft late: what came sooner behind another one teaches nothing
EXPLORE = 12  # rounds from one that may be of another length than it would be, to see what that takes, to the next
NEW_EXPLORE, NEW_ROUNDS = 5, 32  # the same at first
EXPLORE_TOKENS = 1.0  # that one may bring less than it would, for being shorter
TRY_SURVIVAL = 0.2  # such rounds get longer by drafts that are this likely, and worth at least their own time
STALL = 4.0  # what takes so many times the usual counts as no more than that
READ_MEMORY = 512.0  # tokens that the mean time of reading one goes back
MOST_PIECE = 128  # tokens that are read at once; whoever reads more at once is on a thread of its own
READ_FOR = 64  # tokens, over which reading is thought to be earned again
LEAST_GAIN = 0.1  # of a turnaround, that a draft may bring at least: what of late speaks against it may pass
READ_GAIN = 2.0  # times as fast as without drafts is what they may be, before any was drafted
READ_TURNAROUNDS = 2.0  # of reading, for which a stream is better than rounds without drafts


class AutoPace:
    """Maximises committed tokens per second from what it measures; see `Pace`.

    Args:
        learned: the device's; goes on learning.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self._told_at: float | None = None
        self._forward_s: list[float] = []  # as told, until it is known what the link takes
        self._ping_s = 0.0
        self._told_again = False  # the next verdict tells what a stream had decoded already
        self._least, self._most = 0, MAX_WINDOW  # drafts of the next round that follows committed text
        self._reads = False  # a round goes without drafts since their drafter has to read
        self._streams_to_read = False
        self._server_reads = True  # the prompt, before its first verdict
        self._asked = False  # a first draft for a round was wanted, and has not come

    def begin(self) -> None:
        """See Pace."""
        self.learned.calibration.answer()
        self.learned.by_itself.answer()
        self._server_reads = True

    def opened(self, forward_s: Sequence[float]) -> None:
        """See Pace."""
        self._forward_s = forwards(forward_s)
        self._server_reads = True

    def _expect(self) -> None:
        """Begin with what the server told, instead of trying all of it."""
        if not self._forward_s:
            return
        learned, forward_s = self.learned, self._forward_s
        self._forward_s = []
        away_s = [self._ping_s + each for each in forward_s]
        learned.turnaround.expect(away_s)
        promise = best_round(learned.calibration, away_s, learned.draft_s or DRAFT_S)
        learned.by_itself.expect(forward_s[0], self._ping_s, promise)

    def another(
        self,
        round_: Sequence[float],
        hoped: Sequence[float],
        waited_s: float | None,
        *,
        hop: bool = False,
        unread: int = 0,
    ) -> bool:
        """See Pace."""
        reads = unread > LITTLE and (
            self._reads_for_free(unread, waited_s) or (self._pays(round_, hoped) and self._worth_reading(unread))
        )
        if waited_s is None:
            self._reads = reads
        wanted = self._wants(round_, hoped, waited_s, hop, unread, reads)
        self._asked = wanted and not round_ and waited_s is None
        return wanted

    def _wants(
        self,
        round_: Sequence[float],
        hoped: Sequence[float],
        waited_s: float | None,
        hop: bool,
        unread: int,
        reads: bool,
    ) -> bool:
        if unread > LITTLE:
            return reads and (waited_s is not None or self._pays(round_, hoped, unread))
        if waited_s is None:
            return self._pays(round_, hoped)
        return self._pays_ahead(round_, hoped, self.learned.turnaround.of(0) - waited_s, hop)

    def _pays_ahead(self, round_: Sequence[float], hoped: Sequence[float], left_s: float, hop: bool) -> bool:
        """Whether drafting on is worth it while a verdict is due in `left_s`, which may have to wait for the token.

        A token at hand when its round's turn comes saves its time, or brings what it is worth, if that is less.
        """
        learned, calibration = self.learned, self.learned.calibration
        draft_s, rate = learned.draft_s, learned.rate
        if left_s >= (1 + hop) * draft_s:
            return True
        run = calibration.run + len(hoped) + len(round_)
        hazard = calibration.hazard(hoped, calibration.run)
        last = round_[-1] if round_ else hoped[-1] if hoped else None
        following = calibration.next_hazard(calibration.place(last, run), run)
        if hop:
            hazard += following
            run += 1
            following = calibration.next_hazard(ANYWHERE, run)
        chance = calibration.chance(hazard)
        hazard += calibration.hazard(round_, run - len(round_) - hop) + following
        value = 0.0
        for count in range(1, AHEAD + 1):
            value += min(calibration.chance(hazard), chance * rate * draft_s)
            if value > rate * max((count + hop) * draft_s - left_s, 0.0):
                return True
            run += 1
            hazard += calibration.next_hazard(ANYWHERE, run)
        return False

    def _reads_for_free(self, unread: int, waited_s: float | None) -> bool:
        """Whether all of it can be read before the verdict that is waited for anyway."""
        away_s, read_s = self.learned.turnaround.of(0), self.learned.read_s
        return waited_s is not None and waited_s + unread * read_s <= away_s

    def _worth_reading(self, unread: int) -> bool:
        """Whether drafts are worth what reading costs while rounds without any are away.

        A verdict waits for the piece that is being read: for half of one each turnaround, or where a piece takes longer
        than that, for the rest of each.
        """
        learned, rate, away_s = self.learned, self.learned.rate, self.learned.turnaround.of(0)
        if not away_s or math.isnan(learned.read_s):
            return True
        token_s = 1 / rate if rate and learned.draft_s else away_s / READ_GAIN
        pieces = learned.piece * learned.read_s / away_s
        late_s = unread * learned.read_s * (pieces / 2 if pieces < 1 else 1 - 1 / (2 * pieces))
        return late_s <= READ_FOR * max(away_s - token_s, LEAST_GAIN * away_s)

    def _pays(self, round_: Sequence[float], hoped: Sequence[float], unread: int = 0) -> bool:
        """Whether drafting further, now that the round waits for it, brings more than the rate asks for its time."""
        learned, calibration = self.learned, self.learned.calibration
        if len(round_) >= self._most:
            return False
        if not round_ and learned.is_idle and not unread:
            return True
        start = calibration.run + len(hoped)
        run, rate = start + len(round_), learned.rate
        last = round_[-1] if round_ else hoped[-1] if hoped else None
        before = calibration.hazard(hoped, calibration.run)
        hazard = before + calibration.hazard(round_, start)
        hazard += calibration.next_hazard(calibration.place(last, run), run)
        survival = calibration.chance(hazard) / calibration.chance(before)
        if not rate:
            return survival >= self._first_survival() and not unread
        if unread:
            first_s = learned.draft_s + unread * learned.read_s
            return self._gains(len(round_), run + 1, hazard, before, rate, first_s)
        if len(round_) < self._least and survival > max(TRY_SURVIVAL, rate * learned.draft_s):
            return True
        return self._gains(len(round_), run + 1, hazard, before, rate, learned.draft_s)

    def _first_survival(self) -> float:
        """How likely a token must be for drafting it, before there is a rate: as if rounds brought FIRST_TOKENS."""
        learned = self.learned
        if not learned.draft_s:
            return FIRST_SURVIVAL
        away_s = learned.turnaround.of(0) or self._ping_s + FIRST_FORWARD_S
        return max(FIRST_SURVIVAL, FIRST_TOKENS * learned.draft_s / (away_s + learned.draft_s))

    def _gains(self, length: int, run: int, hazard: float, before: float, rate: float, first_s: float) -> bool:
        """Whether one more draft, or up to AHEAD of them, bring more tokens than the rate asks for their time.

        Args:
            length: drafts before it.
            run: right tokens before the one behind it.
            hazard: up to and with it; of that `before` is what the round hangs on, which has come true if it counts.
            rate: tokens per second.
            first_s: seconds that it takes to draft.
        """
        calibration, rise, draft_s = self.learned.calibration, self.learned.turnaround.rise, self.learned.draft_s
        hope, tokens, drafts_s = calibration.chance(before), 0.0, first_s
        for further in range(1, AHEAD + 1):
            survival = calibration.chance(hazard) / hope
            tokens += survival
            if tokens > rate * (drafts_s + rise(length, further)):
                return True
            if survival < LEAST or survival <= rate * draft_s:
                break  # no later one is worth its own time
            hazard += calibration.next_hazard(ANYWHERE, run)
            run += 1
            drafts_s += draft_s
        return False

    def more(self, round_: Sequence[float], confidence: float, hoped: Sequence[float]) -> bool:
        """See Pace."""
        learned, calibration = self.learned, self.learned.calibration
        self._asked = False
        start = calibration.run + len(hoped)
        run, rate = start + len(round_), learned.rate
        before = calibration.hazard(hoped, calibration.run)
        hazard = before + calibration.hazard([*round_, confidence], start)
        survival = calibration.chance(hazard) / calibration.chance(before)
        last = round_[-1] if round_ else hoped[-1] if hoped else None
        calibration.drafted(calibration.place(last, run), confidence)
        if not hoped and len(round_) >= self._most:
            return False
        if not rate:
            return survival >= FIRST_SURVIVAL
        if survival < LEAST:
            return False
        if not hoped and len(round_) < self._least and survival >= TRY_SURVIVAL:
            return True
        return self._gains(len(round_), run + 1, hazard, before, rate, 0.0)

    def send(self, round_: Sequence[float], hoped: Sequence[float]) -> bool:
        """See Pace."""
        calibration = self.learned.calibration
        return calibration.survival(hoped, calibration.run) >= HOPE

    def read(self, count: int, took_s: float) -> None:
        """See Pace."""
        piece = min(count, MOST_PIECE)
        self.learned.piece += piece / READ_MEMORY * (piece - self.learned.piece)
        self._read_at(count, took_s)

    def _read_at(self, count: int, took_s: float) -> None:
        learned, each = self.learned, took_s / count
        if math.isnan(learned.read_s):
            learned.read_s = each
        learned.read_s += min(count / READ_MEMORY, 0.5) * (each - learned.read_s)

    def drafted(self, count: int, took_s: float, read: int = 0) -> None:
        """See Pace."""
        learned = self.learned
        if count < 1:
            return
        learned.idle = 0
        if read > LITTLE:  # what of it was drafting is little, and hardly known
            self._read_at(read, max(took_s - count * learned.draft_s, 0.0))
            return
        each = took_s / count
        if not learned.draft_s:
            learned.draft_s = each
        learned.draft_s += 0.05 * (min(each, STALL * learned.draft_s) - learned.draft_s)

    def told(
        self,
        round_: Sequence[float],
        accepted: int,
        took_s: float,
        hoped: Sequence[float],
        *,
        now: float,
        hop: tuple[float, bool] | None = None,
        batch: int = 1,
    ) -> None:
        """See Pace."""
        learned = self.learned
        if self._told_again:  # neither its time nor its tokens are a round's
            self._told_again, self._told_at = False, now
            learned.calibration.told(round_, accepted)
            return
        server_reads, self._server_reads = self._server_reads, False
        usual_s = learned.turnaround.of(len(round_))
        if server_reads and usual_s:
            took_s = min(took_s, usual_s)
        if not hoped:
            learned.by_itself.away(took_s, usual_s)
        learned.rounds += 1
        learned.idle += 1
        alone_s = len(round_) * learned.draft_s + learned.turnaround.of(len(round_))
        if self._reads and not round_ and self._told_at is None:
            pass  # the server has read the prompt in that time
        elif not hoped:
            learned.turnaround.told(len(round_), took_s, reads=server_reads)
            learned.length += max(FOLLOW, 1 / (learned.rounds + 1)) * (len(round_) - learned.length)
        elif self._told_at is not None and now - self._told_at > QUEUED_DRAFTS * learned.draft_s:
            learned.turnaround.told_queued(len(round_), now - self._told_at)
        self._least, self._most = 0, MAX_WINDOW
        if learned.rounds % (EXPLORE if learned.rounds > NEW_ROUNDS else NEW_EXPLORE) == 0:
            self._explore()
        if hop is not None and accepted == len(round_):
            learned.calibration.told([*round_, hop[0]], accepted + hop[1])
        else:
            learned.calibration.told(round_, accepted)
        passed_s = took_s if self._told_at is None else now - self._told_at
        self._told_at = now
        if learned.seconds:
            passed_s = min(passed_s, STALL * learned.seconds / learned.weight)
        if learned.rounds > FIRST_ROUNDS and not self._reads:  # before, there was nothing to compare with
            learned.by_itself.told(alone_s, passed_s, batch)
        reads, self._reads = self._reads, False
        if not reads or round_:  # without drafts since one reads, that is not what they bring
            learned.by_itself.sent(silent=self._asked and not round_)
            self._count(accepted + 1.0, passed_s)

    def _count(self, tokens: float, seconds: float) -> None:
        learned = self.learned
        fade = 1.0 - FOLLOW
        learned.weight = fade * learned.weight + 1.0
        learned.tokens = fade * learned.tokens + tokens
        learned.seconds = fade * learned.seconds + seconds
        learned.by_itself.count(tokens, seconds, learned.tokens / learned.weight, learned.seconds / learned.weight)

    def _explore(self) -> None:
        """Have the next round be shorter or longer than usual, if little is known of such rounds."""
        usual, away = round(self.learned.length), self.learned.turnaround
        least = self._least_cheap(usual)
        shorter = away.little_known(size for size in (usual // 2, usual // 4, usual - 1, 0) if least <= size < usual)
        if shorter is not None:
            self._most = shorter
        else:
            self._least = away.little_known(range(usual + 1, min(2 * usual + 3, MAX_WINDOW + 1))) or 0

    def _least_cheap(self, usual: int) -> int:
        """The least length of a round whose missing drafts, of `usual` ones, would not have brought much."""
        learned, calibration = self.learned, self.learned.calibration
        hazard, brings = 0.0, []
        for right in range(usual):
            hazard += calibration.next_hazard(ANYWHERE, calibration.run + right)
            brings.append(max(calibration.chance(hazard) - learned.rate * learned.draft_s, 0.0))
        left = EXPLORE_TOKENS
        while brings and brings[-1] <= left:
            left -= brings.pop()
        return len(brings)

    def lost(self) -> None:
        """See Pace."""
        # The time it took counts: that is what hoping costs.

    # -- the server by itself

    def streams(self, remaining: int, ping_s: float, unread: int = 0) -> bool:
        """See Pace."""
        self._streams_to_read = False
        self._ping_s = ping_s if 0.0 <= ping_s < math.inf else 0.0
        self._expect()
        if self._told_again:
            return False
        if self.learned.by_itself.begins(remaining, ping_s):
            return True
        self._streams_to_read = self._reads_long(unread)
        return self._streams_to_read

    def _reads_long(self, unread: int) -> bool:
        """Whether the drafter has so much to read that the server had better decode meanwhile."""
        learned, away_s = self.learned, self.learned.turnaround.of(0)
        if unread <= LITTLE or not learned.rate or not unread * learned.read_s > READ_TURNAROUNDS * away_s:
            return False
        return self._pays((), ())

    def stream_begun(self, now: float) -> None:
        """See Pace."""
        self.learned.by_itself.begun(now, reads=self._server_reads)
        self._server_reads = False

    def streamed(self, tokens: int, now: float, batch: int = 1, *, waited: bool = True) -> None:
        """See Pace."""
        self._told_at = now
        self.learned.by_itself.streamed(tokens, now, batch, waited=waited)

    def stays(self, remaining: int, unread: int = 0) -> bool:
        """See Pace."""
        if self._streams_to_read and unread > LITTLE:
            return True
        learned, other = self.learned, self.learned.by_itself
        link = other.link_s * learned.weight
        without = learned.tokens / max(learned.seconds - link, 0.1 * learned.seconds) if learned.seconds else 0.0
        self._told_again = not other.stays(remaining, without)
        return not self._told_again

    def shadows(self, unread: int = 0) -> bool:
        """See Pace."""
        return self.learned.by_itself.wants_shadow(self.learned.draft_s, reads=unread > LITTLE)

    def shadowing(self, drafts: Sequence[float], accepted: int) -> None:
        """See Pace."""
        run = self.learned.calibration.run + accepted
        tokens = 1.0 + accepted + self.learned.calibration.length(drafts[accepted:], run)
        self.learned.by_itself.shadowing(tokens, self._shadow_s(len(drafts)))

    def shadowed(self, drafts: Sequence[float], accepted: int, size: int) -> None:
        """See Pace."""
        learned = self.learned
        learned.rounds += 1
        learned.idle += 1
        learned.by_itself.shadowed()
        learned.calibration.told(drafts, accepted)
        self._count(min(accepted, size) + 1.0, self._shadow_s(size))

    def _shadow_s(self, size: int) -> float:
        """What a round in the shadow would have taken."""
        learned = self.learned
        return (size * learned.draft_s + learned.turnaround.of(size)) * learned.by_itself.overlap
