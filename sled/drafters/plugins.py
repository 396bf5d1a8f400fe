"""Drafters that other packages bring, by entry points of the group `sled.drafters`: NAME = "MODULE:FACTORY"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgebus import EdgebusError
from sled.drafters.protocol import Drafter
from sled.drafters.spec import Spec
from sled.errors import UnknownModel
from sled.messages import Described, Vocabulary

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sled.drafters"


@dataclass(frozen=True, slots=True)
class Request:
    """What a drafter is opened for, and with."""

    target: Described
    vocabulary: Vocabulary | None
    threads: int = 0
    progress: Callable[[float], None] | None = None


class Factory(Protocol):
    """What an entry point names."""

    def __call__(self, target: Described, vocabulary: Vocabulary, options: Mapping[str, str]) -> Drafter:
        """A drafter for a target.

        Args:
            target: what the server said about its model.
            vocabulary: the bytes of each of its token ids.
            options: as the user wrote them behind "@".
        """


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point."""

    entry: EntryPoint

    @property
    def name(self) -> str:
        """What users write."""
        return self.entry.name

    @property
    def origin(self) -> str:
        """The distribution that brings it, and its version."""
        return f"{self.entry.dist.name} {self.entry.dist.version}" if self.entry.dist else self.entry.value

    def open(self, spec: Spec, request: Request) -> Drafter:
        """Import it and make the drafter.

        Raises:
            UnknownModel: it does not import, it raised, or it made no drafter.
        """
        if request.vocabulary is None:
            raise UnknownModel(f"drafter {self.name!r} of {self.origin} needs the target's vocabulary; give it")
        try:
            factory: Factory = self.entry.load()
            made: Any = factory(request.target, request.vocabulary, dict(spec.options))
        except EdgebusError:
            raise
        except (Exception, SystemExit) as error:  # whatever it was
            raise UnknownModel(
                f"drafter {self.name!r} of {self.origin} failed: {type(error).__name__}: {error}; ask its authors"
            ) from error
        if not (callable(getattr(made, "draft", None)) and callable(getattr(made, "start", None))):
            raise UnknownModel(
                f"{self.entry.value} of {self.origin} made {type(made).__name__}, no drafter with start and draft"
            )
        drafter: Drafter = made
        return drafter


def plugins() -> list[Plugin]:
    """All that are installed, by name; the first of a name counts."""
    from importlib.metadata import entry_points  # takes milliseconds that most devices need not spend

    found: dict[str, Plugin] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, Plugin(entry))
    return [found[name] for name in sorted(found)]


def find_plugin(name: str) -> Plugin | None:
    """The one of a name; a path is none."""
    if "/" in name or name.endswith(".gguf"):
        return None
    return next((plugin for plugin in plugins() if plugin.name == name), None)
