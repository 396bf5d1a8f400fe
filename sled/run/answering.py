"""One answer as it comes: drafts, rounds in flight, and what of it is committed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import edgebus
from edgebus.payloads import encode
from sled import messages
from sled.device import Committed, Generation, State
from sled.errors import AnswerIncomplete, ParameterError
from sled.events import Event, Finished, RoundSent
from sled.events import Opened as OpenedEvent
from sled.messages import Close, Opened, Trace, Traced, Verdict
from sled.pace import pace_for
from sled.run.drafting import Drafting
from sled.run.flights import Flights
from sled.run.following import Shadowing, verdicts
from sled.run.losing import Absence
from sled.run.refusals import as_error, decoded
from sled.run.saving import Saver
from sled.run.telling import Telling
from sled.saved import Saved, state_of
from sled.stats import Answer, summarise
from sled.types import Token
from sled.unverified import Released

if TYPE_CHECKING:
    from sled.run.device import Device

_FORGET_S = 0.3  # how long to wait until a server has heard that a session is over
_FORGET_WITHIN_S = 60.0  # and how long that may take one that computes: it would forget by itself, but much later
_STREAM_BYTES = 8192  # how far a server that decodes may be ahead of what was taken here


class Stream:
    """The tokens of one answer, as they are committed; `answer()` gives the whole with its figures.

    `events()` gives, instead of tokens alone, everything that happens: drafts, rounds, lost servers. Both read the same
    answer: use one of them.

    Args:
        device: whose answer it is.
        machine: the answer.
        save_to: the file it is kept in, to be gone on with later.
        resumed: what is known of its first tokens.
    """

    def __init__(
        self, device: Device, machine: Generation, save_to: Path | None = None, resumed: Saved | None = None
    ) -> None:
        self._device, self._machine = device, machine
        self._clock = device._around.clock
        self._telling = Telling(machine, device.piece, self._clock)
        assert device._servers is not None
        self._servers = device._servers
        self._bytes_before = self._servers.traffic()
        self._pace = pace_for(machine.window, device._learned)
        self._drafting = Drafting(device.drafter, machine, self._pace, self._clock)
        self._flights = Flights(machine, self._drafting, self._pace, self._telling.now)
        released = Released(device.target.stop_ids, device.piece)
        self._absence = Absence(
            machine, self._servers, self._drafting, device.loss(), released, device._around, device._timeout_s
        )
        self._saver = Saver(save_to, self._state, device._around) if save_to is not None else None
        self._opening: edgebus.Pending | None = None
        self._asked_to_open = False
        self._started_drafter = self._unverified_end = False
        self._watched = self._cancelled = False
        self._no_streams = False  # the server in use does not know them
        self._asked_at = -1  # length of the text for which it was last asked whether a stream is wanted
        self._restored = [] if resumed is None else self._restore(resumed)
        if self._saver is not None:
            self._saver.begin()
        self._events = self._run()
        self._tokens = self._only_tokens()

    @property
    def moves(self) -> int:
        """How often another server, or the same one after a failure, had to take the answer over."""
        return self._absence.moves

    def __iter__(self) -> Iterator[Token]:
        return self._tokens

    def _only_tokens(self) -> Generator[Token, None, None]:
        with contextlib.closing(self._events):
            for event in self._events:
                if isinstance(event, Token):
                    yield event

    def events(self) -> Generator[Event, None, None]:
        """Everything that happens, as it happens; `sled.events` has the kinds."""
        self._watched = True
        return self._events

    def close(self) -> None:
        """Break the answer off; the device is free for another one. On the thread that reads it."""
        self._events.close()

    def leave(self) -> None:
        """The device closes, and the answer ends with an error when it goes on: its server need not wait for that."""
        self._forget(0.0)

    def cancel(self) -> None:
        """Break the answer off from any thread: whoever reads it finds its end within a tenth of a second."""
        self._cancelled = True
        self._flights.cancel()

    @property
    def num_bytes(self) -> int:
        """Bytes that the links have carried for this answer so far, in both directions; from any thread."""
        return sum(self._servers.traffic()) - sum(self._bytes_before)

    def answer(self) -> Answer:
        """Wait for the end of the answer and return it.

        Raises:
            AnswerIncomplete: it was broken off, by an error, `close` or `cancel`.
        """
        for _ in self._events:
            pass
        self._telling.end()
        machine, (sent, received) = self._machine, self._servers.traffic()
        if machine.state is not State.DONE and not self._unverified_end:
            how = f"resume it from {self._saver.path}" if self._saver is not None else "generate it again"
            raise AnswerIncomplete(f"the answer was broken off after {len(machine.answer)} tokens; {how}")
        return Answer(
            text=self._telling.text,
            logprobs=self._telling.logprobs,
            tokens=machine.answer,
            prompt_tokens=machine.prompt_tokens,
            finish_reason=machine.finish,
            unverified=list(self._absence.released.tokens),
            unverified_text=self._absence.released.text,
            stats=summarise(
                machine.counts,
                bytes_sent=sent - self._bytes_before[0],
                bytes_received=received - self._bytes_before[1],
                vocabulary_bytes=self._device._vocabulary_bytes,
                first_token_s=self._telling.first_token_s,
                wall_s=self._telling.wall_s,
            ),
        )

    def trace(self, last: int = 64) -> Traced:
        """What the server has noted about the last rounds of this answer.

        Raises:
            SessionUnknown: it has forgotten.
        """
        return self._device._call(messages.TRACE, encode(Trace(self._machine.session, last)), Traced)

    # -- the loop

    def _run(self) -> Generator[Event, None, None]:
        if self._device._streaming:
            raise ParameterError("this device is busy with another answer; finish it, or close() it first")
        self._device._streaming, self._device._stream = True, self
        self._pace.begin()
        machine, absence = self._machine, self._absence
        try:
            yield from self._restored
            if machine.state is not State.DONE and not absence.loss.bears:
                self._servers.choose(self._device._timeout_s, lambda: self._cancelled)
                absence.must_choose = False
            while machine.state is not State.DONE and not self._cancelled and not absence.over:
                try:
                    yield from self._advance()
                except edgebus.EdgebusError as error:
                    if self._cancelled:
                        break
                    yield self._go_on_after(error)
            self._end_without_server()
            yield from absence.ended()
            if machine.state is State.DONE or self._unverified_end:
                yield Finished(machine.finish, len(absence.released.tokens), self._now())
        finally:
            self._telling.wall_s = self._now()
            self._device._streaming, self._device._stream = False, None
            self._drafting.close()
            self._give_up_rounds()
            if self._saver is not None:
                self._saver.write()
            self._device._remember()
            self._forget()

    def _end_without_server(self) -> None:
        """The answer ends unverified, if it has begun; else there is only the error."""
        machine, absence = self._machine, self._absence
        if machine.state is not State.DONE and not self._cancelled:
            if absence.loss.policy != "release" or not machine.num_prompt:
                raise absence.error()
            self._unverified_end = True

    def _advance(self) -> Generator[Event, None, None]:
        """One thing: open, take a verdict, send a round, draft a token, or wait for a verdict."""
        machine, drafting, flights, absence = self._machine, self._drafting, self._flights, self._absence
        if machine.state is State.OPENING:
            yield from self._open()
        elif machine.server_decodes or self._wants_stream():
            yield from self._try_stream()
        elif flights and flights.has_verdict():
            yield from self._take_verdict()
        elif flights.may_send():
            yield self._send()
        elif drafting.step(flights.waited_s()):
            if flights and absence.due():
                yield from self._look()
            if self._watched:
                yield from self._telling.tail()
        elif not flights:
            yield self._send()  # the drafter is dry, or drafting on does not pay
        else:
            yield from self._idle(flights.pending)

    def _open(self) -> Generator[Event, None, None]:
        machine, absence, opening = self._machine, self._absence, self._opening
        if opening is None and self._clock() < absence.retry_at:
            yield from self._idle(None)
        elif opening is None:
            if absence.must_choose:
                absence.choose(lambda: self._cancelled)
            request = encode(machine.open_request())
            self._asked_to_open = True  # from now on it may stand at the server, whether we hear of it or not
            self._opening = self._servers.link.send_request(messages.OPEN, request, timeout_s=self._device._timeout_s)
            absence.asked()
        elif not opening.done():
            yield from self._idle(opening)
        else:
            self._opening = None
            try:
                reply = opening.result()
            except edgebus.Refused as refused:
                raise as_error(refused) from None
            opened = decoded(Opened, reply.payload)
            machine.opened(opened)
            self._pace.opened(opened.forward_s)
            self._no_streams = False
            self._start_drafter()
            absence.back()
            self._save()
            yield self._is_open()

    def _is_open(self) -> OpenedEvent:
        machine = self._machine
        committed, limit = len(machine.history), machine.window_limit
        return OpenedEvent(self._servers.link.endpoint, machine.num_prompt, committed, limit, self._now())

    def _start_drafter(self) -> None:
        if not self._started_drafter:
            self._started_drafter = True
            self._device.drafter.start(self._machine.sampling, self._machine.num_prompt)

    def _look(self) -> Generator[Event, None, None]:
        lost = self._absence.look()
        if lost is not None:
            yield msgspec.structs.replace(lost, at_s=self._now())

    def _idle(self, pending: edgebus.Pending | None) -> Generator[Event, None, None]:
        """Nothing to do but wait; without a server, show what is drafted."""
        if pending is not None:
            yield from self._look()
        shown = self._absence.show(self._telling.shown)
        if shown is not None:
            self._save()
            yield shown
        wait_s = self._device._around.look_s if shown is None and not self._absence.reads else 0.0
        if pending is not None:
            pending.wait(wait_s)
            self._flights.looked()
        elif wait_s:
            self._device._around.sleep(max(0.0, min(wait_s, self._absence.retry_at - self._clock())))

    def _send(self) -> RoundSent:
        is_first = not self._flights
        sent = self._flights.send(self._servers.link, self._device._timeout_s)
        if is_first:
            self._absence.asked()
        return sent

    def _take_verdict(self) -> Generator[Event, None, None]:
        machine, asked = self._machine, self._flights.take()
        self._absence.asked()
        try:
            reply = asked.pending.result()
        except edgebus.Refused as refused:
            if refused.code == "stale_base" and asked.flight.hoped:  # it came before what it hangs on
                self._flights.put_back(asked)
                machine.abandon()
                yield from self._flights.dead()
                return
            raise as_error(refused) from None
        verdict, flight = decoded(Verdict, reply.payload), asked.flight
        before, num_drafts = machine.counts.accepted, len(flight.drafts)
        hope = machine.chain.proposals[num_drafts : num_drafts + 1]
        committed = machine.verdict(verdict)
        accepted = machine.counts.accepted - before
        hop = None
        if hope and len(committed) > num_drafts == accepted:
            hop = (hope[0].confidence, committed[num_drafts].token == hope[0].token)
        away_s = self._flights.away_s(asked)
        self._pace.told(
            asked.confidences, accepted, away_s, flight.hoped, now=self._clock(), hop=hop, batch=verdict.batch
        )
        if self._absence.back():
            yield self._is_open()
        yield asked.ended(self._now(), verdict.window_limit, accepted, len(committed), verdict.batch)
        yield from self._flights.dead()
        yield from self._commit(committed)
        if self._watched:
            yield from self._telling.tail()

    def _give_up_rounds(self) -> None:
        self._flights.give_up()
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._machine.state is not State.DONE:
            self._machine.abandon()

    def _wants_stream(self) -> bool:
        """Whether the server had better go on by itself; asked once for each text committed."""
        machine = self._machine
        if self._asked_at == len(machine.history) or not machine.may_stream or self._no_streams:
            return False
        self._asked_at = len(machine.history)
        ping_s = self._servers.link.stats().round_trip_s
        return self._pace.streams(machine.remaining, ping_s, self._drafting.unread)

    def _try_stream(self) -> Generator[Event, None, None]:
        """Follow a stream; without one if the server has none and takes drafts: rounds tell then whether it serves."""
        try:
            yield from self._follow_stream()
        except edgebus.Refused as refused:
            if refused.code != "unknown_service" or self._machine.stream_wanted:
                raise
            self._no_streams = True
            self._machine.stream_ended()

    def _follow_stream(self) -> Generator[Event, None, None]:
        """Tokens that the server decodes without drafts, until it, or the pace, wants some again or the answer ends."""
        machine, link, timeout_s, pace = self._machine, self._servers.link, self._device._timeout_s, self._pace
        request = encode(machine.decode_request())
        self._drafting.close()
        shadowing = Shadowing(self._device.drafter, machine, pace, self._clock)
        pace.stream_begun(self._clock())
        with (
            contextlib.closing(shadowing),
            link.stream(messages.DECODE, request, window_bytes=_STREAM_BYTES) as stream,
        ):
            for part in verdicts(stream, self._absence, self._device._around, timeout_s, shadowing.step):
                if part is not None:
                    verdict, waited = part
                    committed = machine.streamed(verdict)
                    if committed:
                        pace.streamed(len(committed), self._clock(), verdict.batch, waited=waited)
                        shadowing.compare()
                    yield from self._commit(committed)
                if machine.state is not State.STREAMING or self._cancelled:
                    return
                if (
                    part is not None
                    and not machine.stream_wanted
                    and not pace.stays(machine.remaining, shadowing.unread)
                ):
                    break
        machine.stream_ended()

    # -- failures

    def _go_on_after(self, error: edgebus.EdgebusError) -> Event:
        """Prepare to go on after a failure, at another server or here; raises the error if there is no use in it."""
        self._give_up_rounds()
        self._pace.lost()
        if self._device.closed:
            raise error
        lost = self._absence.after(error)
        self._save()
        return msgspec.structs.replace(lost, at_s=self._now())

    def _forget(self, wait_s: float = _FORGET_S) -> None:
        """Tell the server that the session is over, if it still listens; nothing depends on it."""
        link = self._servers.link
        if self._asked_to_open and link.health != "down":
            content = encode(Close(self._machine.session))
            with contextlib.suppress(edgebus.EdgebusError):
                link.send(messages.CLOSE, content, timeout_s=_FORGET_WITHIN_S).wait(wait_s)

    # -- what is kept

    def _save(self) -> None:
        if self._saver is not None:
            self._saver.look()

    def _state(self) -> Saved:
        """What was told; what is committed behind it comes again when it is asked for."""
        telling, guesses = self._telling, self._absence.released.guesses
        return state_of(self._machine, self._device.target, telling.told, telling.logprobs, guesses)

    def _restore(self, saved: Saved) -> list[Event]:
        """The text so far, and what is to be told again."""
        self._telling.restore(saved.answer, saved.logprobs)
        if self._machine.num_prompt and not saved.finish:
            self._start_drafter()
        length = len(self._machine.history)
        return list(self._absence.released.restore(saved.unverified, self._telling.shown, length))

    # -- what is told

    def _now(self) -> float:
        return self._telling.now()

    def _commit(self, committed: list[Committed]) -> Iterator[Event]:
        for each in committed:
            retracted = self._absence.committed(each.token, each.pos)
            if retracted is not None:
                yield retracted
            yield self._telling.token(each)
        if committed:
            self._save()
