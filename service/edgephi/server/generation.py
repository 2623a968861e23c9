"""
GenerationService: one handler per method, and the stream of an answer.

Owns the way of an event from the engine's thread to the client, and the promise that an answer nobody reads any more
is cancelled. Knows no page and no status code.
"""

# ruff: noqa: N802, ARG002 - names and arguments of the handlers are the contract's
from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from edgephi.engine.request import FinishReason
from edgephi.errors import Draining, InvalidRequest, Overloaded
from edgephi.generation.generator import Generator
from edgephi.generation.request import Delta, Final, GenerationEvent, GenerationRequest, PrefillProgress
from edgephi.server import converter
from edgephi.server.calls import Context, current_call
from edgephi.server.lifecycle import Lifecycle
from edgephi.server.metrics import Metrics
from edgephi.server.model_info import ModelInfo
from edgephi.server.stream_buffer import StreamBuffer
from edgephi.server.tokenizing import TokenizingQueue
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceServicer

PROGRESS_INTERVAL_S = 1.0
CANCEL_WAIT_S = 5.0


class GenerationHandler(GenerationServiceServicer):
    """
    Answers requests for text. Lives as long as its server.

    Args:
        generator: Makes the answers.
        model: The served model.
        lifecycle: Says whether requests are taken, and knows the running answers.
        metrics: Where answers are counted.
        tokenizing: Where prompts are made.
        max_duration_s: Most seconds for one answer.
    """

    def __init__(
        self,
        generator: Generator,
        model: ModelInfo,
        lifecycle: Lifecycle,
        metrics: Metrics,
        tokenizing: TokenizingQueue,
        *,
        max_duration_s: float,
    ) -> None:
        self._generator = generator
        self._model = model
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tokenizing = tokenizing
        self._max_duration_s = max_duration_s
        self._serial = itertools.count(1)

    async def Chat(self, request: pb2.ChatRequest, context: Context) -> AsyncIterator[pb2.ChatResponse]:
        """Answer a chat."""
        chat = converter.chat_input(request, defaults=self._generator.defaults)
        converter.require_served(request.model, self._model)
        self._lifecycle.require_ready()
        prompt = functools.partial(self._generator.chat_prompt, chat.messages)
        async with contextlib.aclosing(
            self._answer(prompt, chat.options, context, num_bytes=chat.num_bytes, prompt_field="messages")
        ) as events:
            async for event in events:
                yield converter.chat_response(event, model=self._model)

    async def Complete(self, request: pb2.CompleteRequest, context: Context) -> AsyncIterator[pb2.CompleteResponse]:
        """Continue a raw prompt."""
        completion = converter.prompt_input(request, defaults=self._generator.defaults)
        converter.require_served(request.model, self._model)
        self._lifecycle.require_ready()
        prompt = functools.partial(self._generator.completion_prompt, completion.prompt)
        async with contextlib.aclosing(
            self._answer(prompt, completion.options, context, num_bytes=completion.num_bytes, prompt_field="prompt")
        ) as events:
            async for event in events:
                yield converter.complete_response(event, model=self._model)

    async def CountTokens(self, request: pb2.CountTokensRequest, context: Context) -> pb2.CountTokensResponse:
        """Count the tokens of a chat or a prompt."""
        content = converter.count_input(request)
        converter.require_served(request.model, self._model)
        make: Callable[[], tuple[int, ...]]
        if isinstance(content, str):
            make = functools.partial(self._generator.completion_prompt, content)
        else:
            make = functools.partial(self._generator.chat_prompt, content)
        prompt = await self._tokenizing.run(make, num_bytes=converter.text_bytes(content))
        return pb2.CountTokensResponse(tokens=len(prompt), context_tokens=self._generator.context_tokens)

    async def _answer(
        self,
        make_prompt: Callable[[], tuple[int, ...]],
        options: converter.Options,
        context: Context,
        *,
        num_bytes: int,
        prompt_field: str,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Start an answer and yield its events; leaving early, by whatever way, cancels it."""
        try:
            self._generator.require_room(num_bytes)
            self._generator.require_place(current_call().client_id)
            # Not on the event loop: tokenizing a long text takes longer than a health probe waits.
            prompt = await self._tokenizing.run(make_prompt, num_bytes=num_bytes)
            self._lifecycle.require_ready()  # again: the server may have begun to drain meanwhile
            request = GenerationRequest(
                # Unique among live requests even where two callers chose one id.
                request_id=f"{current_call().request_id}#{next(self._serial)}",
                prompt=prompt,
                max_tokens=options.max_tokens,
                sampling=options.sampling,
                stop=options.stop,
                client_id=current_call().client_id,
                deadline_s=context.time_remaining(),
            )
            async with contextlib.aclosing(self._events(request)) as events:
                async for event in events:
                    yield event
        except InvalidRequest as error:
            error.violations = converter.contract_paths(error.violations, prompt_field=prompt_field)
            raise
        except Overloaded as error:
            self._lifecycle.refused(error)
            raise

    async def _events(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        buffer = StreamBuffer()
        ended = asyncio.Event()
        loop, call = asyncio.get_running_loop(), current_call()
        pace = _Pace(self._metrics)
        cancel = functools.partial(self._generator.cancel, request.request_id)

        def receive(arrived_at: float, event: GenerationEvent) -> None:
            if isinstance(event, Final):
                self._metrics.answer_ended(event.reason.value, event.usage, event.timings)
                call.facts.update(_facts(event))
                call.final, call.final_at_s = event, arrived_at
                ended.set()
            if pace.is_worth_sending(event, arrived_at) and not buffer.put(event):
                cancel()  # the reader is told by the buffer

        def sink(event: GenerationEvent) -> None:
            loop.call_soon_threadsafe(receive, time.monotonic(), event)

        with self._lifecycle.answering(request.request_id):
            self._generator.start(request, sink)
            limit = loop.call_later(self._max_duration_s, cancel, FinishReason.DEADLINE)
            progress = PrefillProgress(done_tokens=0, total_tokens=len(request.prompt))
            has_text = False
            try:
                while True:
                    # Until the first text a sign of life every second, in the queue as well: people, and the boxes
                    # between them and us, give up on a silent connection.
                    event = await _next(buffer, None if has_text else PROGRESS_INTERVAL_S) or progress
                    if isinstance(event, Final) and event.reason is FinishReason.CANCELLED:
                        # Nobody else ends an answer whose client still listens. A final message would say that what
                        # was sent is an answer.
                        raise Draining("the server shut down before the answer was complete; ask another one again")
                    if isinstance(event, PrefillProgress):
                        progress = event
                    else:
                        has_text = True
                    yield event
                    if isinstance(event, Final):
                        return
            finally:
                limit.cancel()
                if not ended.is_set():
                    cancel()
                    # The step in progress ends first. Waiting for it, but not for a stuck one, makes the line in the
                    # log complete and keeps the answer among the active ones until its pages are free.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), CANCEL_WAIT_S)


async def _next(buffer: StreamBuffer, timeout_s: float | None) -> GenerationEvent | None:
    """Return the next event, or None if there is none in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await buffer.get()
    except TimeoutError:
        return None


def _facts(final: Final) -> dict[str, int | float | str | None]:
    """Return what the log says of an answer."""
    usage, timings = final.usage, final.timings
    facts: dict[str, int | float | str | None] = {
        "reason": final.reason.value,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "queue_ms": round(timings.queue_s * 1000, 1),
    }
    if usage.output_tokens:
        facts["ttft_ms"] = round((timings.queue_s + timings.prefill_s) * 1000, 1)
    if usage.output_tokens > 1 and timings.decode_s > 0:
        facts["decode_tokens_per_s"] = round((usage.output_tokens - 1) / timings.decode_s, 2)
    return facts


class _Pace:
    """Thins out the progress of one prefill, and times the parts of one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._progress_at: float | None = None
        self._delta_at: float | None = None

    def is_worth_sending(self, event: GenerationEvent, arrived_at: float) -> bool:
        """Whether to send an event that arrived then: all but progress within a second of the last one sent."""
        if isinstance(event, Delta):
            if self._delta_at is not None:
                self._metrics.token_interval(arrived_at - self._delta_at)
            self._delta_at = arrived_at
        if not isinstance(event, PrefillProgress):
            return True
        is_due = self._progress_at is None or arrived_at - self._progress_at >= PROGRESS_INTERVAL_S
        if not is_due and event.done_tokens < event.total_tokens:
            return False
        self._progress_at = arrived_at
        return True
