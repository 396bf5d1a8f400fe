"""A process that serves the toy target as `sled serve` serves a model; settings come as JSON on the command line."""

from __future__ import annotations

import json
import sys

from edgebus.daemon.logs import set_up_logs
from sled.run.serving import Loaded, run_server
from sled.settings import load_settings
from sled.testing import ToyTarget


def main() -> None:
    settings = load_settings(None, {}, json.loads(sys.argv[1]))
    set_up_logs(settings.log_level, "json" if settings.log_json else "console")

    def ready(ready) -> None:
        print(json.dumps({"endpoint": ready.endpoint, "metrics": ready.metrics}), flush=True)

    run_server(settings, lambda settings: Loaded(ToyTarget()), ready)


if __name__ == "__main__":
    main()
