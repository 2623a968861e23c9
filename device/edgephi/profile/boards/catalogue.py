"""
The catalogue of known boards: those shipped with edgephi and those of the user's own files.

Owns looking one up by name and recognising the machine it runs on. Does not decide where a user's files lie.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgephi.errors import ConfigError
from edgephi.profile.boards.board import Board, BoardCluster, Evidence, Figure, PublishedSpeed, ThermalEnvelope
from edgephi.profile.boards.boardfile import read_boards
from edgephi.profile.machine.probe import DeviceFacts

__all__ = [
    "Board",
    "BoardCluster",
    "Catalogue",
    "Evidence",
    "Figure",
    "PublishedSpeed",
    "ThermalEnvelope",
    "load_catalogue",
    "shipped_files",
]

# What the kernel reports as all memory lies below what is sold by what firmware, GPU and modem keep; less than this
# fraction is another board.
MIN_MEMORY_SHARE = 0.8


class Catalogue:
    """Boards by name, in the order they were read. Made by :func:`load_catalogue`; never changes."""

    def __init__(self, boards: Sequence[Board]) -> None:
        self._boards = {board.name: board for board in boards}
        assert len(self._boards) == len(boards)

    @property
    def boards(self) -> tuple[Board, ...]:
        """All boards."""
        return tuple(self._boards.values())

    def get(self, name: str) -> Board:
        """
        Return the board of that name.

        Raises:
            ConfigError: If there is none; with similar names.
        """
        board = self._boards.get(name)
        if board is not None:
            return board
        close = [other for other in self._boards if _is_short_for(name, other)]
        close = close or difflib.get_close_matches(name.lower(), self._boards, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(close[:8])}? " if close else ""
        raise ConfigError(f"no board is named {name[:80]!r}; {hint}`edgephi devices` lists all of them")

    def match(self, facts: DeviceFacts) -> Board | None:
        """
        Recognise a machine, or return None.

        The name that its firmware gives must begin with one the board has; the longest such beginning wins. A board
        without any is told by its cores, all of which must be as in the catalogue, in at least two kinds. Then the
        kernel's memory must be a little less than what is sold. Of equals the one read last is taken: the user's own.
        """
        family = self._family_by_name(facts) or self._family_by_cores(facts)
        total = facts.memory.total_bytes
        if total is None:
            return family[0] if len(family) == 1 else None
        fitting = [
            board
            for board in reversed(family)
            if board.memory_bytes.value * MIN_MEMORY_SHARE <= total <= board.memory_bytes.value
        ]
        return min(fitting, key=lambda board: board.memory_bytes.value, default=None)

    def _family_by_name(self, facts: DeviceFacts) -> list[Board]:
        name = facts.board
        if name is None:
            return []
        lengths = {
            board.name: max((len(start) for start in board.matches if _begins(name, start)), default=0)
            for board in self.boards
        }
        longest = max(lengths.values(), default=0)
        known = {cluster.core for cluster in facts.cpu.clusters if cluster.core is not None}
        return [
            board
            for board in self.boards
            if longest and lengths[board.name] == longest and known <= {cluster.core for cluster in board.clusters}
        ]

    def _family_by_cores(self, facts: DeviceFacts) -> list[Board]:
        counts = _counts((cluster.core, len(cluster.cpus)) for cluster in facts.cpu.clusters)
        if None in counts or len(counts) < 2:
            return []
        return [
            board
            for board in self.boards
            if not board.matches and _counts((cluster.core, cluster.count) for cluster in board.clusters) == counts
        ]


def load_catalogue(user_files: Sequence[Path] = ()) -> Catalogue:
    """
    Read the shipped boards and those of a user's files.

    Raises:
        ConfigError: If a file cannot be read, breaks a rule (with file, line, field and what is allowed), or has a
            board whose name is taken.
    """
    boards: list[Board] = []
    taken: dict[str, Path] = {}
    for path in (*shipped_files(), *dict.fromkeys(user_files)):
        found = read_boards(path, taken=taken)
        taken.update((board.name, path) for board in found)
        boards += found
    return Catalogue(boards)


def shipped_files() -> tuple[Path, ...]:
    """Return the files of boards that are part of edgephi, by name, those of no board in particular last."""
    found = Path(__file__).parent.glob("*.yaml")
    return tuple(sorted(found, key=lambda path: (path.stem.startswith("generic"), path.stem)))


def _is_short_for(name: str, board: str) -> bool:
    """Return whether *name* is some words of a board's name in a row, as people write them: pi5, rpi-5, 8gen3."""
    words, known = (re.findall(r"[a-z]+|[0-9]+", text.lower()) for text in (name, board))
    if not any(len(word) > 1 for word in words):
        return False
    return any(
        _stands_for(words[0], own, before) and words[1:] == known[at + 1 : at + len(words)]
        for at, (before, own) in enumerate(zip(["", *known], known, strict=False))
    )


def _stands_for(word: str, own: str, before: str) -> bool:
    """Return whether a word begins a board's own, or is it, the one before it cut to its beginning: rpi."""
    if word.endswith(own):
        return before.startswith(word.removesuffix(own))
    return word.isalpha() and own.startswith(word)


def _begins(name: str, start: str) -> bool:
    """Return whether *name* begins with the words of *start*, whatever their case."""
    name, start = name.casefold(), start.casefold()
    return name.startswith(start) and not name[len(start) : len(start) + 1].isalnum()


def _counts(cores: Iterable[tuple[str | None, int]]) -> dict[str | None, int]:
    """Return how many cores there are of each design, whatever their frequencies."""
    counts: dict[str | None, int] = {}
    for core, count in cores:
        counts[core] = counts.get(core, 0) + count
    return counts
