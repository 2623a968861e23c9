"""The whole chain on real weights: a compiled model behind a real server, asked by the shipped client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgephi.artifact.synth import synthesize
from edgephi.cli.compose import LocalService, ServiceOptions, open_service
from edgephi.client import AsyncClient
from edgephi.engine.request import SamplingParams
from edgephi.generation.request import Delta, GenerationRequest
from edgephi.pocket import model_dir
from edgephi.pocket.evaluate import build_test_sets
from edgephi.pocket.reference import Reference
from edgephi.server.app import Server
from edgephi.server.settings import ServerSettings
from edgephi.text.template import Message, Role

pytestmark = pytest.mark.tvm

COMMANDS = (
    "turn on the hall light",
    "turn the kitchen lights down to thirty percent",
    "please lock the front door",
    "set a timer for an hour and twenty minutes",
    "go forward one and a half metres",
    "put the blue cup on the shelf",
    "what is the capital of france",
)

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def pocket() -> Iterator[LocalService]:
    """The embedded model, loaded as `edgephi serve` loads it."""
    with open_service(ServiceOptions(max_running=4)) as service:
        yield service


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    """A model of random weights, whose answers hardly ever end by themselves."""
    folder = synthesize("phi3-small", tmp_path_factory.mktemp("models") / "phi3-small")
    with open_service(ServiceOptions(model=str(folder), kv_tokens=2048, max_running=2)) as service:
        yield service


def answer_in_process(service: LocalService, command: str, sampling: SamplingParams = GREEDY) -> str:
    """Answer without a server, greedy unless told otherwise."""
    prompt = service.generator.chat_prompt([Message(Role.USER, command)])
    request = GenerationRequest(prompt=prompt, max_tokens=100, sampling=sampling, stop=(), request_id="in-process")
    return "".join(event.text for event in service.generator.stream(request) if isinstance(event, Delta))


async def wait_for_free_pages(service: LocalService) -> None:
    """Return when the engine is idle and no page is owned."""
    async with asyncio.timeout(10):
        while (stats := service.loop.stats()).running or stats.waiting or stats.pages_used:
            await asyncio.sleep(0.01)


async def test_grpc_gives_what_the_process_gives(pocket: LocalService) -> None:
    """Greedy answers of the pocket model over gRPC equal those in the process, and are valid JSON."""
    expected = [answer_in_process(pocket, command) for command in COMMANDS]
    server = Server(pocket.served(), ServerSettings(port=0))
    await server.start()
    try:
        await server.wait_ready()
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            answers = [await client.chat(command, temperature=0.0, max_tokens=100).read() for command in COMMANDS]
    finally:
        await server.stop(0)

    assert answers == expected
    assert json.loads(answers[0])["intent"] == "light_on"
    assert all("intent" in json.loads(answer) for answer in answers)


def test_the_engine_answers_as_the_reference(pocket: LocalService) -> None:
    """On held-out commands of every intent the compiled engine gives the answers of the NumPy reference."""
    reference = Reference(model_dir())
    sample = build_test_sets(1)["held_out"]
    differing = [
        example.text for example in sample if answer_in_process(pocket, example.text) != reference.answer(example.text)
    ]

    # Both round activations to 8 bits; where two tokens are nearly equally likely, the last bit of a float decides.
    assert len(differing) <= 1, differing


async def test_companions_change_nothing(pocket: LocalService) -> None:
    """Commands sent all at once get the answers they get one by one."""
    expected = [answer_in_process(pocket, command) for command in COMMANDS]
    server = Server(pocket.served(), ServerSettings(port=0))
    await server.start()
    try:
        await server.wait_ready()
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            streams = [client.chat(command, temperature=0.0, max_tokens=100) for command in COMMANDS]
            answers = await asyncio.gather(*(stream.read() for stream in streams))
    finally:
        await server.stop(0)

    assert answers == expected


async def test_one_of_two_clients_cancels_in_the_middle(endless: LocalService) -> None:
    """A cancelled stream ends early, its companion gets its whole answer, and no page stays owned."""
    server = Server(endless.served(), ServerSettings(port=0))
    await server.start()
    try:
        await server.wait_ready()
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address) as patient, AsyncClient(address) as hasty:
            whole = patient.complete("one", temperature=0.0, max_tokens=200)
            part = hasty.complete("two", temperature=0.0, max_tokens=900)
            reading = asyncio.create_task(whole.read())
            async for _ in part:
                part.cancel()
            text = await reading
            before = endless.loop.stats().tokens_generated_total
            await wait_for_free_pages(endless)
    finally:
        await server.stop(0)

    assert part.final is None
    assert whole.final is not None
    assert text
    assert whole.final.usage.output_tokens <= 200
    # The cancelled answer stopped being computed: nothing like its 900 tokens was drawn.
    assert endless.loop.stats().tokens_generated_total - before < 50
    assert endless.loop.stats().tokens_generated_total < 700


def test_guessed_tokens_change_no_answer(pocket: LocalService) -> None:
    """Greedy and sampled answers are the same with guessed tokens and without, and some guesses come true."""
    commands = [example.text for example in build_test_sets(2)["held_out"]]
    sampling = SamplingParams(temperature=0.7, top_p=0.95, seed=5)
    with open_service(ServiceOptions(max_draft_tokens=0)) as plain:
        expected = [answer_in_process(plain, command) for command in commands]
        drawn = [answer_in_process(plain, command, sampling) for command in commands]
        assert plain.loop.stats().drafted_tokens_total == 0
    assert [answer_in_process(pocket, command) for command in commands] == expected
    assert [answer_in_process(pocket, command, sampling) for command in commands] == drawn
    assert pocket.loop.stats().accepted_tokens_total > 0


def test_the_compiled_model_is_found_again(pocket: LocalService, tmp_path: Path) -> None:
    """Opening the pocket model a second time compiles nothing."""
    labels: list[str] = []

    with open_service(ServiceOptions(), progress=lambda label, _done, _total: labels.append(label)) as again:
        assert again.level == pocket.level

    assert labels == []
