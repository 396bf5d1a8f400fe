"""The conversation: reads questions, shows answers, does commands."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgebus.errors import EdgebusError
from sled.chat.clean import clean
from sled.chat.commands import HELP, Command, changed, parse
from sled.chat.conversation import MAX_FILE_BYTES, Conversation, Settings
from sled.chat.reader import Reader
from sled.chat.screen import has_colour, legend, open_screen
from sled.chat.tally import Tally
from sled.chat.transcript import Transcript
from sled.drafters import Drafter
from sled.errors import ParameterError
from sled.events import Event
from sled.messages import Described
from sled.run.pump import Closable, Pump, Worker
from sled.window import Window

LOOK_S = 0.05  # how often the screen is drawn at most


class AnswerStream(Closable, Protocol):
    """What a conversation needs of `sled.Stream`."""

    @property
    def num_bytes(self) -> int: ...

    def events(self) -> Iterator[Event]:
        """What happens to the answer."""


class Talker(Protocol):
    """What a conversation needs of `sled.Device`."""

    @property
    def target(self) -> Described: ...
    @property
    def drafter(self) -> Drafter: ...
    @property
    def server(self) -> str: ...
    @property
    def chat(self) -> Callable[..., AnswerStream]: ...


class Talk:
    """One conversation.

    Args:
        device: who answers.
        console: where to.
        reader: where questions come from.
        settings: of the first answer.
        window: drafts per round; None leaves it to the device.
    """

    def __init__(
        self, device: Talker, console: Console, reader: Reader, settings: Settings, window: Window | None = None
    ) -> None:
        self._device, self._console, self._reader, self._window = device, console, reader, window
        self.conversation = Conversation(settings)
        self.tallies: list[tuple[Tally, float]] = []
        self._worker = Worker("sled-chat")
        self._plain = not console.is_terminal

    def run(self) -> int:
        """Until whoever types leaves; returns the exit status."""
        self._greet()
        interrupted = False
        failed = False
        try:
            while True:
                try:
                    line = self._reader.read()
                except KeyboardInterrupt:
                    self._console.print()
                    if interrupted:
                        return 130
                    interrupted = True
                    self._tell("Ctrl-C again leaves, and so do Ctrl-D and /quit")
                    continue
                if line is None:
                    return 1 if failed and self._plain else 0
                interrupted = False
                if not line.strip():
                    continue
                try:
                    asked = parse(line)
                    if isinstance(asked, Command):
                        if asked.name == "quit":
                            return 0
                        self._do(asked)
                    else:
                        interrupted = self.ask(asked)
                except KeyboardInterrupt:  # the second while an answer was being stopped
                    return 130
                except (EdgebusError, OSError) as error:
                    failed = True
                    self._complain(str(error))
        finally:
            self._worker.end()

    def ask(self, text: str) -> bool:
        """Have a question answered and shown; True if it was interrupted.

        Raises:
            EdgebusError: why there is no answer.
        """
        settings = self.conversation.settings
        options = {"window": self._window} if self._window is not None else {}
        stream = self._device.chat(
            self.conversation.asking(text), max_tokens=settings.max_tokens, sampling=settings.sampling, **options
        )
        pump = Pump(stream, stream.events)
        transcript, tally = Transcript(), Tally(self._device.server)
        screen, began = open_screen(self._console), time.monotonic()
        self._worker.do(pump.run)
        failure: EdgebusError | None = None
        note = ""
        with interrupts() as stopped:
            try:
                while not pump.drained:
                    until = time.monotonic() + LOOK_S
                    try:
                        while (event := pump.take(max(0.0, until - time.monotonic()))) is not None:
                            transcript.apply(event)
                            tally.apply(event, now_s=time.monotonic() - began)
                            if time.monotonic() >= until:
                                break
                    except EdgebusError as error:
                        failure, note = error, clean(str(error))
                    if stopped() and not pump.cancelled:
                        note = "stopped"
                        pump.cancel()
                    tally.num_bytes = stream.num_bytes
                    screen.show(transcript, tally, time.monotonic() - began)
                tally.num_bytes = stream.num_bytes
            finally:
                pump.cancel()
                took_s = time.monotonic() - began
                screen.finish(transcript, tally, took_s, note, failed=failure is not None)
        if transcript.text:
            self.conversation.answered(text, transcript.text)
            self.tallies.append((tally, took_s))
        if failure is not None and self._plain:
            raise failure
        return stopped()

    def _do(self, command: Command) -> None:
        match command:
            case Command("help", _):
                self._help()
            case Command("reset", _):
                self.conversation.reset()
                self._tell("the conversation is forgotten")
            case Command("save", name):
                path = _path(command)
                path.write_bytes(self.conversation.to_json(self._device.target.name))
                self._tell(f"{len(self.conversation.turns)} messages are in {clean(str(path))}")
            case Command("load", name):
                self._load(_path(command))
            case Command("stats", _):
                self._stats()
            case Command(name, _):
                self.conversation.settings = changed(self.conversation.settings, command)
                self._tell(f"{name}: {clean(command.argument) or 'nothing'}")

    def _load(self, path: Path) -> None:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        self.conversation, target = Conversation.from_json(content)
        self._tell(f"{len(self.conversation.turns)} messages from {clean(str(path))}")
        if target != self._device.target.name:
            self._tell(f"they were exchanged with {clean(target)}, this is {self._device.target.name}")

    def _greet(self) -> None:
        if self._plain:
            return
        target = self._device.target
        title = Text.assemble(
            ("sled chat", "bold"),
            f"  {clean(target.name)} {clean(target.dtype)} at {clean(self._device.server)}",
            f", drafter {clean(self._device.drafter.name)}",
        )
        self._console.print(title, highlight=False)
        self._console.print(legend(self._console), highlight=False)
        self._tell("/help lists the commands, Ctrl-C stops an answer")

    def _help(self) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
        for name, (argument, what) in HELP.items():
            table.add_row(Text(f"/{name} {argument}", "cyan" if has_colour(self._console) else ""), what)
        self._console.print(table, legend(self._console), highlight=False)

    def _stats(self) -> None:
        if not self.tallies:
            self._tell("no answer yet")
            return
        table = Table("", "last answer", "all", box=None, pad_edge=False, padding=(0, 2))
        last, every = self.tallies[-1:], self.tallies
        for name, figure in FIGURES.items():
            table.add_row(name, figure(last), figure(every))
        self._console.print(table, highlight=False)

    def _tell(self, text: str) -> None:
        if not self._plain:
            self._console.print(Text(text, "bright_black"), highlight=False)

    def _complain(self, text: str) -> None:
        if self._plain:
            Console(stderr=True, soft_wrap=True).print(Text(f"sled: {clean(text)}"), highlight=False)
        else:
            self._console.print(Text(clean(text), "bold red"), highlight=False)


_Told = Sequence[tuple[Tally, float]]


def _ratio(part: float, whole: float, form: str) -> str:
    return format(part / whole, form) if whole else "-"


FIGURES: dict[str, Callable[[_Told], str]] = {
    "answers": lambda told: f"{len(told)}",
    "tokens": lambda told: f"{sum(t.tokens for t, _ in told)}",
    "tokens/s": lambda told: _ratio(sum(t.tokens for t, _ in told), sum(s for _, s in told), ".1f"),
    "first token": lambda told: f"{sum(max(t.first_at_s, 0) for t, _ in told) / len(told) * 1e3:.0f} ms",
    "drafts": lambda told: f"{sum(t.drafted for t, _ in told)}",
    "accepted": lambda told: _ratio(sum(t.accepted for t, _ in told), sum(t.drafted for t, _ in told), ".0%"),
    "rounds": lambda told: f"{sum(t.rounds for t, _ in told)}",
    "tokens a round": lambda told: _ratio(sum(t.decided for t, _ in told), sum(t.rounds for t, _ in told), ".2f"),
    "bytes a token": lambda told: _ratio(sum(t.num_bytes for t, _ in told), sum(t.tokens for t, _ in told), ".0f"),
    "round trip": lambda told: f"{told[-1][0].round_trip_s * 1e3:.0f} ms",
    "in one batch": lambda told: f"{told[-1][0].batch}",
}


def _path(command: Command) -> Path:
    if not command.argument:
        raise ParameterError(f"/{command.name} needs a file name")
    try:
        path = Path(command.argument).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise ParameterError(f"/{command.name} {command.argument}: {error}") from None
    if "\0" in command.argument:
        raise ParameterError(f"/{command.name}: a file name has no zero character")
    return path


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """In the block the first Ctrl-C only makes what is yielded true, and a second one is a KeyboardInterrupt."""
    seen = [0]

    def note(number: int, frame: object) -> None:
        seen[0] += 1
        if seen[0] > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen[0] > 0
    finally:
        signal.signal(signal.SIGINT, before)
