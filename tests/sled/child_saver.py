"""A device as a process: it generates, or resumes, an answer that it saves, slowly, and prints its tokens."""

from __future__ import annotations

import json
import sys
import time

from sled.run.device import Device
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling
from sled.window import Window


def main() -> None:
    given = json.loads(sys.argv[1])
    drafter = ToyDrafter(ToyTarget(), error=0.3)
    with Device(given["server"], insecure=True, drafter=drafter, cache_dir=given["cache"], timeout_s=10.0) as device:
        if given["resume"]:
            stream = device.resume(given["file"])
        else:
            stream = device.generate(
                given["prompt"],
                max_tokens=given["max_tokens"],
                sampling=Sampling(**given["sampling"]),
                window=Window(3),
                save_to=given["file"],
            )
        for token in stream:
            print(token.pos, token.id, flush=True)
            time.sleep(given["pause_s"])
        print("answer", json.dumps(stream.answer().tokens), flush=True)


if __name__ == "__main__":
    main()
