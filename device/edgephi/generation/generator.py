"""
Generates text: prompt and checks before the engine, deltas and stop strings after it.

Owns every bound of a generation request that the context or the tokenizer decides. Knows no gRPC, no TVM and
no pages; the engine's loop and the tokenizer are passed in and closed by whoever made them.
"""

from __future__ import annotations

import queue
import threading
from collections import abc
from collections.abc import Callable, Sequence
from typing import Protocol

from edgephi.engine.limits import EngineLimits
from edgephi.engine.request import (
    EngineEvent,
    EngineRequest,
    FinishReason,
    RequestId,
    SamplingParams,
    TokenSampled,
)
from edgephi.engine.request import (
    PrefillProgress as EnginePrefillProgress,
)
from edgephi.errors import FieldViolation, InvalidRequest, PromptTooLong
from edgephi.generation.answer import AnswerAssembler
from edgephi.generation.request import Final, GenerationEvent, GenerationRequest, PrefillProgress
from edgephi.text.stop_strings import stop_violations
from edgephi.text.template import Message, render_chat, render_prompt
from edgephi.text.tokenizer import Tokenizer

EventSink = Callable[[GenerationEvent], None]


class Loop(Protocol):
    """What generation needs of the engine's step loop; ``edgephi.engine.loop.EngineLoop`` is one."""

    @property
    def limits(self) -> EngineLimits:
        """How much is taken on at present."""
        ...

    def submit(self, request: EngineRequest, sink: Callable[[EngineEvent], None]) -> None:
        """Start a request; its events go to the sink on the engine's thread, in order, ``Finished`` last."""
        ...

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token; any thread, a sink included; unknown ids are ignored."""
        ...


class Generator:
    """
    Text generation over one engine loop. Thread-safe: it keeps nothing between requests; nothing to close.

    Args:
        tokenizer: The model's.
        loop: Computes tokens.
        context_tokens: Longest prompt and answer together.
        eos_token_ids: Tokens that end an answer (Phi-3: 32000, 32001, 32007).
        defaults: The model's sampling, for requests that name none.
        default_max_tokens: Longest answer of a request that names no ``max_tokens``, since pages for all of it are
            reserved; None for all that fit the context.
        require_place: Raises Overloaded if a client's next request would be refused for lack of room, whatever it is;
            None where nothing can tell beforehand.

    Attributes:
        tokenizer: The model's.
        context_tokens: Longest prompt and answer together.
        defaults: The model's sampling.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        loop: Loop,
        *,
        context_tokens: int,
        eos_token_ids: frozenset[int],
        defaults: SamplingParams,
        default_max_tokens: int | None = None,
        require_place: Callable[[str], None] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self.defaults = defaults
        self._default_max_tokens = default_max_tokens if default_max_tokens is not None else context_tokens
        self._loop = loop
        self._require_place = require_place
        self._eos_token_ids = eos_token_ids

    def chat_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """
        Render a conversation with the model's chat template.

        Raises:
            InvalidRequest: Naming every message that breaks a rule of ``render_chat``.
        """
        return tuple(render_chat(self.tokenizer, messages))

    def completion_prompt(self, text: str) -> tuple[int, ...]:
        """
        Render a text the model is to continue.

        Raises:
            InvalidRequest: If the text is not valid Unicode.
        """
        return tuple(render_prompt(self.tokenizer, text))

    def require_place(self, client_id: str) -> None:
        """
        Refuse a client for whom there is no room, before its prompt is rendered.

        Raises:
            Overloaded: If its next request would be refused, whatever it is.
        """
        if self._require_place is not None:
            self._require_place(client_id)

    def require_room(self, num_bytes: int) -> None:
        """
        Refuse text that cannot fit the context, however its tokens fall; much cheaper than rendering it.

        Args:
            num_bytes: Of all contents together, in UTF-8, leading white space left out.

        Raises:
            PromptTooLong: With the fewest tokens it could have.
        """
        least_tokens = -(-num_bytes // self.tokenizer.max_token_bytes)
        if least_tokens >= self.context_tokens:
            raise PromptTooLong(
                prompt_tokens=least_tokens, max_tokens=1, context_tokens=self.context_tokens, is_estimate=True
            )

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text alone: without BOS, without template."""
        return len(self.tokenizer.encode(text))

    def start(self, request: GenerationRequest, sink: EventSink) -> None:
        """
        Check a request and hand it to the engine.

        Args:
            request: What to generate.
            sink: Called on the engine's thread, in order, ``Final`` last and exactly once. It must not block
                or raise; it may call ``cancel``.

        Raises:
            InvalidRequest: Naming every field out of bounds; nothing was started, the sink is never called.
            PromptTooLong: If nothing else is wrong but prompt and max_tokens exceed the context.
            Overloaded: If the engine has no room now.
            NotReady: If the engine is not running.
        """
        self._submit(request, self._checked(request), sink)

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request before its next token; a ``Final`` with the reason follows. Unknown ids are ignored."""
        self._loop.cancel(RequestId(request_id), reason)

    def stream(self, request: GenerationRequest) -> abc.Generator[GenerationEvent, None, None]:
        """
        Generate for a caller in this process.

        The request is checked now and submitted when the first event is asked for. Leaving the loop early,
        closing the iterator or an interrupt cancels the request and waits until its pages are free.

        Returns:
            Iterator of events, ``Final`` last.

        Raises:
            InvalidRequest: As ``start`` does, here; ``Overloaded`` and ``NotReady`` come from the first event.
        """
        return self._events(request, self._checked(request))

    def _events(
        self, request: GenerationRequest, engine_request: EngineRequest
    ) -> abc.Generator[GenerationEvent, None, None]:
        events: queue.SimpleQueue[GenerationEvent] = queue.SimpleQueue()
        # Not inferred from what was read: an interrupt may strike just after Final has left the queue.
        is_over = threading.Event()
        reader = threading.get_ident()

        def sink(event: GenerationEvent) -> None:
            events.put(event)
            if isinstance(event, Final):
                is_over.set()

        self._submit(request, engine_request, sink)
        try:
            while True:
                event = events.get()
                yield event
                if isinstance(event, Final):
                    return
        finally:
            if not is_over.is_set():
                self.cancel(request.request_id)
                # The garbage collector may close an abandoned iterator on any thread. Waiting on the engine's
                # own would stop it for good, and the pages are freed without us, so only the reader waits.
                if threading.get_ident() == reader:
                    is_over.wait()

    def _submit(self, request: GenerationRequest, engine_request: EngineRequest, sink: EventSink) -> None:
        # A prompt that ends in text, not in a control token, is continued: the answer keeps its first space.
        continues_text = request.prompt[-1] not in self.tokenizer.control_ids
        answer = AnswerAssembler(self.tokenizer, request.stop, continues_text=continues_text)

        def on_engine_event(event: EngineEvent) -> None:
            if isinstance(event, EnginePrefillProgress):
                sink(PrefillProgress(done_tokens=event.done_tokens, total_tokens=event.total_tokens))
                return
            if isinstance(event, TokenSampled):
                had_stopped = answer.matched_stop is not None
                delta = answer.push(event)
                if answer.matched_stop is not None and not had_stopped:
                    # Before the delta goes out: no token is worth computing while it is delivered.
                    self._loop.cancel(event.request_id, FinishReason.STOP)
                if delta is not None:
                    sink(delta)
                return
            delta = answer.finish()
            if delta is not None:
                sink(delta)
            # A found stop string completes the answer, even if the engine reached another end in the same step.
            reason = event.reason if answer.matched_stop is None else FinishReason.STOP
            final = Final(
                reason=reason,
                matched_stop=answer.matched_stop,
                usage=event.usage,
                timings=event.timings,
                error=event.error if reason is FinishReason.ERROR else None,
            )
            sink(final)

        self._loop.submit(engine_request, on_engine_event)

    def _checked(self, request: GenerationRequest) -> EngineRequest:
        """Check everything and return what the engine is asked for; raise with all violations at once."""
        sampling = request.sampling if request.sampling is not None else self.defaults
        found = [FieldViolation(f"sampling.{v.field}", v.description) for v in sampling.violations()]
        found += stop_violations(request.stop)
        found += self._prompt_violations(request.prompt)
        if not request.request_id:
            found.append(FieldViolation("request_id", "is empty; send an id that is unique among live requests"))
        room = self.context_tokens - len(request.prompt)
        max_tokens = request.max_tokens
        if max_tokens is None:
            # Not more than would be taken on now: who names no limit should not be refused for one.
            room_now = self._loop.limits.max_request_tokens - len(request.prompt)
            max_tokens = max(min(room, room_now, self._default_max_tokens), 1)
        if max_tokens < 1:
            found.append(FieldViolation("max_tokens", f"is {max_tokens}; must be at least 1, or unset for the default"))
        elif max_tokens > room:
            too_long = PromptTooLong(
                prompt_tokens=len(request.prompt), max_tokens=max_tokens, context_tokens=self.context_tokens
            )
            if not found:
                raise too_long
            found += too_long.violations
        if found:
            raise InvalidRequest(*found)
        return EngineRequest(
            request_id=RequestId(request.request_id),
            prompt=request.prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop_token_ids=self._eos_token_ids,
            client_id=request.client_id,
            deadline_s=request.deadline_s,
        )

    def _prompt_violations(self, prompt: tuple[int, ...]) -> list[FieldViolation]:
        if not prompt:
            return [FieldViolation("prompt", "has 0 tokens; send at least one")]
        if len(prompt) >= self.context_tokens:
            return []  # too long in any case, and perhaps far too long to look at each id
        size = self.tokenizer.vocab_size
        index = next((i for i, token_id in enumerate(prompt) if not 0 <= token_id < size), None)
        if index is None:
            return []
        return [FieldViolation(f"prompt[{index}]", f"is token id {prompt[index]}; must be 0 to {size - 1}")]
