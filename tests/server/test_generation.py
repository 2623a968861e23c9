"""GenerationService over a local socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from edgephi.text.tokenizer import Tokenizer
from edgephi.v1 import generation_pb2 as types
from edgephi.v1 import generation_service_pb2 as pb2
from edgephi.v1 import sampling_pb2
from edgephi.v1.generation_service_pb2_grpc import GenerationServiceStub

ANSWER = "The robot moves to the left and stops at the door."
# Takes several seconds at the delays used below, so that only a cancelled request can be gone before.
LONG_ANSWER = " ".join([ANSWER] * 12)
Serve = Any  # the fixture's type lives in conftest, which is no module to import from


def user(text: str, **fields: Any) -> pb2.ChatRequest:
    """Return a chat of one message of the user."""
    return pb2.ChatRequest(messages=[types.Message(role=types.ROLE_USER, content=text)], **fields)


def text_of(responses: list[Any]) -> str:
    """Return the text of all deltas."""
    return "".join(response.delta.text for response in responses)


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> float:
    """Wait until something holds and return how long that took, in seconds."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout_s, "did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def test_a_chat_streams_progress_then_text_then_one_final(serve: Serve, tokenizer: Tokenizer) -> None:
    """A chat's stream is progress, then deltas, then exactly one final with usage and timings."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        call = GenerationServiceStub(channel).Chat(user("Where is the robot?"))
        responses = [response async for response in call]
        kinds = [response.WhichOneof("event") for response in responses]
        assert kinds[0] == "prefill_progress"
        assert kinds[-1] == "final"
        assert set(kinds[1:-1]) <= {"prefill_progress", "delta"}
        assert kinds.count("final") == 1
        assert text_of(responses) == ANSWER
        final = responses[-1].final
        assert final.finish_reason == types.FINISH_REASON_STOP
        assert not final.HasField("matched_stop")
        assert final.model == "models/tiny-phi3"
        assert final.usage.prompt_tokens == responses[0].prefill_progress.total_tokens
        assert final.usage.output_tokens == len(tokenizer.encode(ANSWER)) + 1
        first_s = final.timings.time_to_first_token.ToTimedelta().total_seconds()
        parts = (final.timings.queue_duration, final.timings.prefill_duration)
        assert first_s == pytest.approx(sum(part.ToTimedelta().total_seconds() for part in parts), abs=2e-6)
        assert running.is_idle()


async def test_a_raw_prompt_is_continued(serve: Serve) -> None:
    """Complete streams the same kinds of events for a prompt without a template."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        request = pb2.CompleteRequest(prompt="The door", model="models/tiny-phi3")
        responses = [response async for response in GenerationServiceStub(channel).Complete(request)]
        assert text_of(responses).strip() == ANSWER
        assert responses[-1].final.finish_reason == types.FINISH_REASON_STOP


async def test_max_tokens_stop_strings_and_logprobs_are_obeyed(serve: Serve) -> None:
    """max_tokens ends with LENGTH, a stop string with STOP and its name, and logprobs come with their text."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        short = [r async for r in stub.Chat(user("Go", sampling=sampling_pb2.SamplingParams(max_tokens=2)))]
        assert short[-1].final.finish_reason == types.FINISH_REASON_LENGTH
        assert short[-1].final.usage.output_tokens == 2
        stopped = [r async for r in stub.Chat(user("Go", sampling=sampling_pb2.SamplingParams(stop=["left"])))]
        assert text_of(stopped) == "The robot moves to the "
        assert stopped[-1].final.matched_stop == "left"
        assert stopped[-1].final.finish_reason == types.FINISH_REASON_STOP
        told = [r async for r in stub.Chat(user("Go", sampling=sampling_pb2.SamplingParams(logprobs=2, max_tokens=3)))]
        tokens = [token for r in told for token in r.delta.logprobs]
        assert len(tokens) == 3
        assert all(len(token.top) == 2 and token.logprob <= 0 for token in tokens)
        assert b"".join(token.token for token in tokens).decode().strip() == text_of(told).strip()


async def test_tokens_are_counted_as_a_request_would_take_them(serve: Serve) -> None:
    """CountTokens of a chat equals the prompt_tokens of that chat's answer, and counts a raw prompt as well."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        request = user("Where is the robot?")
        counted = await stub.CountTokens(pb2.CountTokensRequest(chat=types.Messages(messages=request.messages)))
        last = [response async for response in stub.Chat(request)][-1]
        assert counted.tokens == last.final.usage.prompt_tokens
        assert counted.context_tokens == 512
        raw = await stub.CountTokens(pb2.CountTokensRequest(prompt="Where is the robot?"))
        assert 1 < raw.tokens < counted.tokens


async def test_one_of_two_clients_cancels_and_the_other_is_not_disturbed(serve: Serve) -> None:
    """A cancelled answer frees its pages at once, and another client's answer is complete."""
    async with (
        serve(step_delay_s=0.01, script=LONG_ANSWER) as running,
        grpc.aio.insecure_channel(running.target) as first,
        grpc.aio.insecure_channel(running.target) as second,
    ):
        leaving = GenerationServiceStub(first).Chat(user("Where is the robot?"))
        staying = GenerationServiceStub(second).Chat(user("Is the door open?"))
        kept = aiter(staying)
        await anext(kept)
        async for response in leaving:
            if response.WhichOneof("event") == "delta":
                break
        assert running.engine.stats().running == 2
        leaving.cancel()
        await until(lambda: running.engine.stats().running == 1, timeout_s=1.0)
        assert text_of([response async for response in kept]) == LONG_ANSWER
        await until(running.is_idle)
        lines = await running.wait_finished("Chat", 2)
        cancelled = next(line for line in lines if line["code"] == "CANCELLED")
        assert cancelled["reason"] == "cancelled"
        assert cancelled["output_tokens"] >= 1


async def test_a_deadline_ends_the_answer_on_time(serve: Serve) -> None:
    """When the caller's deadline passes, it gets DEADLINE_EXCEEDED on time and the pages are free."""
    async with (
        serve(step_delay_s=0.02, script=LONG_ANSWER) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in GenerationServiceStub(channel).Chat(user("Where is the robot?"), timeout=0.3)]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0.25 < time.monotonic() - started < 1.0
        await until(running.is_idle, timeout_s=1.0)
        assert (await running.wait_finished("Chat", 1))[0]["code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


async def test_a_vanished_client_frees_its_pages(serve: Serve) -> None:
    """A client whose connection closes without a word leaves no request behind."""
    async with serve(step_delay_s=0.02, script=LONG_ANSWER) as running:
        channel = grpc.aio.insecure_channel(running.target)
        call = GenerationServiceStub(channel).Chat(user("Where is the robot?"))
        await anext(aiter(call))
        assert not running.is_idle()
        await channel.close(None)
        await until(running.is_idle, timeout_s=1.0)


async def test_the_servers_own_time_limit_ends_with_what_exists(serve: Serve) -> None:
    """An answer that reaches the server's time limit ends with its text so far and the reason DEADLINE."""
    async with (
        serve(step_delay_s=0.1, max_duration_s=1.0) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        responses = [r async for r in GenerationServiceStub(channel).Chat(user("Where is the robot?"))]
        assert responses[-1].final.finish_reason == types.FINISH_REASON_DEADLINE
        assert ANSWER.startswith(text_of(responses))
        assert 0 < len(text_of(responses)) < len(ANSWER)


async def test_progress_is_sent_first_and_last_and_rarely_between(serve: Serve) -> None:
    """A prefill of many quick chunks sends its first and its last progress only."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        responses = [r async for r in GenerationServiceStub(channel).Chat(user("robot " * 150))]
        progress = [r.prefill_progress for r in responses if r.WhichOneof("event") == "prefill_progress"]
        assert len(progress) == 2
        assert 0 < progress[0].done_tokens < progress[0].total_tokens
        assert progress[1].done_tokens == progress[1].total_tokens


async def test_the_request_id_comes_back(serve: Serve) -> None:
    """A valid x-request-id is echoed and logged; an invalid one is replaced."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        stub = GenerationServiceStub(channel)
        for count, (sent, is_kept) in enumerate((("robot-7.a_b", True), ("x" * 65, False), ("a b", False)), 1):
            call = stub.Chat(user("Go"), metadata=(("x-request-id", sent),))
            _ = [r async for r in call]
            trailers = await call.trailing_metadata()
            echoed = str(dict(trailers or ())["x-request-id"])
            assert (echoed == sent) is is_kept
            assert (await running.wait_finished("Chat", count))[-1]["request_id"] == echoed


async def test_the_same_id_may_be_used_twice_at_once(serve: Serve) -> None:
    """Two callers that chose the same x-request-id are both answered."""
    async with serve(step_delay_s=0.01) as running, grpc.aio.insecure_channel(running.target) as channel:

        async def ask() -> str:
            call = GenerationServiceStub(channel).Chat(user("Go"), metadata=(("x-request-id", "same"),))
            return text_of([r async for r in call])

        assert list(await asyncio.gather(ask(), ask())) == [ANSWER, ANSWER]


async def test_no_text_of_a_prompt_or_an_answer_is_logged(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the log nor what is printed holds any word of a request or an answer, of good or bad calls."""
    canary = "canaryquartz"
    async with (
        serve(script="canaryonyx", metrics_port=0) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        stub = GenerationServiceStub(channel)
        answer = [r async for r in stub.Chat(user(canary))]
        assert text_of(answer) == "canaryonyx"
        for fault in (RuntimeError(f"failed on {canary}"), None):
            running.generator.faults = [fault] if fault else []
            sampling = sampling_pb2.SamplingParams(temperature=9, stop=[canary])
            with pytest.raises(grpc.aio.AioRpcError):
                _ = [r async for r in stub.Chat(user(canary, sampling=None if fault else sampling))]
        await running.wait_finished("Chat", 3)
        seen = [{k: v for k, v in line.items() if k != "exc_info"} for line in running.log]
        assert "canary" not in repr(seen)
    captured = capfd.readouterr()
    assert "canary" not in captured.out + captured.err
