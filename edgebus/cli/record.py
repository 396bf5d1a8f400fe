"""`edgebus record` and `edgebus replay`."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from edgebus import counting
from edgebus.cli.options import Endpoint, Insecure, Json, OwnKeys, ServerKey, Timeout, linked, print_json, safe
from edgebus.cli.tap import MAX_CONTENT_BYTES, Service, say_open, tapped
from edgebus.daemon.daemon import version
from edgebus.errors import ConfigError
from edgebus.files import cure
from edgebus.recorder import Reader, RecordingError, Start, Writer
from edgebus.replay import Replay, Tally


def record(
    endpoint: Endpoint,
    file: Annotated[Path, typer.Argument(help="Where the recording goes; must not be there yet.")],
    service: Service = "*",
    count: Annotated[int, typer.Option(min=0, help="End after so many messages; 0 is at Ctrl-C.")] = 0,
    server_key: ServerKey = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Record the messages of a node with their contents, to look at or to replay. The file is readable by us alone.

    The node has to grant it: services=*,edgebus.tap beside our key in its allow-list.

    Example: edgebus record tcp://server:7000 day.ebrec --server-key server.key --keys ./device
    """
    with linked(
        endpoint, server_key=server_key, keys=keys, insecure=insecure, timeout_s=timeout_s, name="edgebus-record"
    ) as link:
        try:
            stream = open(file, "xb", opener=_private)  # noqa: SIM115 - closed by the with below, once it is there
        except FileExistsError:
            raise ConfigError(f"{file} is there already: choose another name, or remove it") from None
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror or error}; {cure(error)}") from error
        with stream:
            writer = Writer(stream, Start(link.peer_name, time.time(), f"edgebus {version()}"))
            with contextlib.suppress(KeyboardInterrupt):  # how a recording ends
                for each in tapped(link, service, MAX_CONTENT_BYTES, lambda: say_open("recording", link)):
                    writer.write(each)
                    stream.flush()  # whoever ends us with a signal keeps what was recorded
                    if count and writer.num_messages >= count:
                        break
    if as_json:
        print_json({"file": str(file), "messages": writer.num_messages, "lost": writer.num_lost})
    else:
        left_out = f"{writer.num_lost} left out because we were too slow"
        typer.echo(f"{counting.count(writer.num_messages, 'message')} in {file}, {left_out}")


def replay(
    file: Annotated[Path, typer.Argument(help="A recording.")],
    endpoint: Endpoint,
    speed: Annotated[str, typer.Option(help="1.0 is the recorded pace, max does not wait.")] = "1.0",
    service: Service = "*",
    outgoing: Annotated[
        bool, typer.Option("--outgoing", help="Send what the recorded node asked others, not what it was asked.")
    ] = False,
    server_key: ServerKey = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    timeout_s: Timeout = 30.0,
    as_json: Json = False,
) -> None:
    """Send the requests of a recording again and compare the answers; exit status 1 if one differs.

    Streams, the bus's own services and requests recorded without contents are not sent.

    Example: edgebus replay day.ebrec tcp://127.0.0.1:7000 --insecure --speed max
    """
    pace = _speed(speed)
    try:
        with (
            _opened(file) as stream,
            linked(
                endpoint,
                server_key=server_key,
                keys=keys,
                insecure=insecure,
                timeout_s=timeout_s,
                name="edgebus-replay",
            ) as link,
        ):
            reader = Reader(stream)
            machine = Replay(
                link, pattern=service, speed=pace, direction="out" if outgoing else "in", timeout_s=timeout_s
            )
            tally = machine.run(reader)
    except RecordingError as error:
        raise ConfigError(f"{file}: {error}") from None
    _report(tally, reader.damage, as_json)
    if tally.different:
        raise typer.Exit(1)


def _report(tally: Tally, damage: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(tally) | {"damage": damage or None})
        return
    typer.echo(
        f"{counting.count(tally.sent, 'request')} sent: {counting.count(tally.same, 'answer')} as recorded, "
        f"{tally.different} different, {tally.uncompared} without a recorded answer"
    )
    for reason, number in tally.skipped.items():
        typer.echo(f"{counting.count(number, 'request')} not sent: {reason}")
    if tally.lost:
        typer.echo(f"the recording lacks {counting.count(tally.lost, 'message')}, left out when it was made")
    if damage:
        typer.echo(f"the recording ends early, {safe(damage, 300)}")
    for line in tally.differences:
        typer.echo(safe(line, 400))


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:
        raise typer.BadParameter(f"--speed is a positive factor or max, got {text!r}")
    return value


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise ConfigError(f"there is no recording {file}: check the path") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}; {cure(error)}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
