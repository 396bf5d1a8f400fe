"""What torch and model libraries read from the environment when they are imported."""

from __future__ import annotations

import os

_ENVIRONMENT = {
    # Nothing is ever loaded from a model hub, and its libraries keep their bars and warnings to themselves.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Threads that spin while they wait make a model several times slower as soon as anything else wants the core.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_environment() -> None:
    """Set it, unless the user has; to be called before such a library is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
