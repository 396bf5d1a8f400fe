"""`qpart keygen`: the key with which a publisher signs what devices are to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpart.signing import PUBLIC_FILE, generate_signing_key


def keygen(
    directory: Annotated[Path, typer.Argument(help="Where to write publisher.key and publisher.key_secret.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a key that is there.")] = False,
) -> None:
    """Make a signing key: the secret half stays with the server, the public half goes to the devices.

    Example:

        qpart keygen signing && qpart serve net.qpart --bind tcp://0.0.0.0:5556 --keys server-keys --sign signing
    """
    public = generate_signing_key(directory, force=force)
    print(f"{directory / PUBLIC_FILE}: {public.hex()}")
