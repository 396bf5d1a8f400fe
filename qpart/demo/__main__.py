"""`python -m qpart.demo`: two nets, one server, three devices with plans of their own, and the proof of all figures."""

from __future__ import annotations

import sys

from edgebus.cli.demo import DemoFailed
from edgebus.cli.environment import set_environment
from edgebus.errors import EdgebusError

if __name__ == "__main__":
    set_environment()  # before torch comes along
    try:
        from qpart.demo.act import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        print(f"demo failed: it needs {error.name}: pip install 'edgebus[server]'", file=sys.stderr)
        sys.exit(1)
    except (DemoFailed, EdgebusError, OSError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        sys.exit(1)
