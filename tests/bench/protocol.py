"""
What the driver asks of an engine, and the loop that answers it from a process of its own.

The driver writes one JSON object a line to the worker's standard input and reads one a line from its standard output.
Every engine is timed by this code, so all of them are timed alike: token ids in, greedy token ids out, no text. What
an engine must do is :class:`Peer`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

FIRST_PROMPT_TOKENS = 16  # the prompt of "load to first token"
_IDS = 3, 2_000  # no control tokens, which an engine may treat specially; the pocket model has these as well
_SOUND_SPREAD = 1e-3, 1e3


class Session(Protocol):
    """Sequences of equal length that are decoded together, greedily."""

    def prefill(self, prompt: Ids) -> None:
        """Forget everything, compute the prompts of shape (batch, tokens) and draw each one's first token."""
        ...

    def step(self) -> None:
        """Compute the last token of each sequence and draw its next one."""
        ...

    def rewind(self) -> None:
        """Go back to where :meth:`prefill` ended, or, if the engine cannot, stay at most a few steps beyond it."""
        ...

    def logits(self) -> Logits:
        """Return the logits of the last token of the first sequence, (vocab,)."""
        ...

    def close(self) -> None:
        """Release the sequences' memory."""
        ...


class Peer(Protocol):
    """An engine with one model."""

    def load(self) -> None:
        """Load the model."""
        ...

    def open(self, batch: int, max_tokens: int, **settings: Any) -> Session:
        """Make room for *batch* sequences of at most *max_tokens* each; *settings* are the engine's own."""
        ...


def random_prompt(batch: int, tokens: int, seed: int) -> Ids:
    """Draw prompts of shape (batch, tokens); the seed decides all of them."""
    return np.random.default_rng(seed).integers(*_IDS, (batch, tokens)).astype(np.int32)


def serve(make_peer: Callable[..., Peer], *, package: str, import_s: float) -> None:
    """
    Answer the driver until it closes standard input.

    Args:
        make_peer: Called with the JSON object in the process's only argument, as keyword arguments.
        package: What the engine is called on the package index.
        import_s: Seconds that importing the engine's library took.
    """
    # Engines print to standard output as well: keep a copy of it for answers and send theirs to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    operations = _Operations(make_peer(**json.loads(sys.argv[1])))
    hello = {"import_s": import_s, "version": importlib.metadata.version(package)}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(operations, request.pop("op"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


class _Operations:
    """What a driver may ask for. Sessions stay open from one round to the next, so a long prompt is computed once."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._sessions: dict[str, Session] = {}
        self._seed = 0

    def load(self, settings: dict[str, Any]) -> dict[str, float]:
        """Time loading and a first short prompt up to its first token, together."""
        prompt = random_prompt(1, FIRST_PROMPT_TOKENS, 0)
        started_at = time.perf_counter()
        self._peer.load()
        session = self._peer.open(1, FIRST_PROMPT_TOKENS + 1, **settings)
        session.prefill(prompt)
        seconds = time.perf_counter() - started_at
        _check(session.logits())
        session.close()
        return {"seconds": seconds}

    def prefill(self, settings: dict[str, Any], tokens: int) -> dict[str, float]:
        """Time a prompt never seen before up to its first token."""
        session, _ = self._session(settings, 1, tokens, tokens + 1)
        self._seed += 1
        prompt = random_prompt(1, tokens, self._seed)
        started_at = time.perf_counter()
        session.prefill(prompt)
        seconds = time.perf_counter() - started_at
        _check(session.logits())
        return {"seconds": seconds}

    def decode(self, settings: dict[str, Any], context: int, batch: int, tokens: int) -> dict[str, float]:
        """Time *tokens* more tokens of each of *batch* sequences after prompts of *context* tokens."""
        # Two tokens more than are timed: the prompt's own and the one of the step before.
        session, is_new = self._session(settings, batch, context, context + tokens + 2)
        if is_new:
            session.prefill(random_prompt(batch, context, 0))
        else:
            session.rewind()
        session.step()  # what happens only once after a prompt is not decoding
        started_at = time.perf_counter()
        for _ in range(tokens):
            session.step()
        seconds = time.perf_counter() - started_at
        _check(session.logits())
        return {"seconds": seconds}

    def release(self) -> dict[str, float]:
        """Close every session."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        return {}

    def memory(self) -> dict[str, float]:
        """Resident memory of this process in bytes: the peak, and what is private and backed by files now."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
        names = {"peak": "VmHWM", "private": "RssAnon", "file": "RssFile"}
        return {name: 1024 * int(status[field].split()[0]) for name, field in names.items()}

    def _session(self, settings: dict[str, Any], batch: int, context: int, max_tokens: int) -> tuple[Session, bool]:
        """The session for this context, and whether it was made just now."""
        key = json.dumps([settings, batch, context, max_tokens])
        session = self._sessions.get(key)
        if session is not None:
            return session, False
        session = self._sessions[key] = self._peer.open(batch, max_tokens, **settings)
        return session, True


def _check(logits: Logits) -> None:
    """Refuse a model that computes nonsense: its speed would mean nothing."""
    spread = float(logits.std())
    if not (np.isfinite(logits).all() and _SOUND_SPREAD[0] < spread < _SOUND_SPREAD[1]):
        raise ArithmeticError(f"logits have a standard deviation of {spread}; a sound random model has about 1")
