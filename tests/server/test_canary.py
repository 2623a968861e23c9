"""Nothing that a client writes and nothing that it is answered is in anything that the server gives out."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.server.canary import MARK, TEXT, leaks, run_session

from edgephi.artifact.synth import synthesize
from edgephi.text.tokenizer import Tokenizer

# A server that writes its prompts wherever it can.
LEAKY = """
from edgephi.errors import FieldViolation, InvalidRequest, Overloaded
from edgephi.server import calls, generation

async def chat(self, request, context):
    text = request.messages[0].content
    calls.current_call().request_id = text
    self._metrics.call_failed(Overloaded("", retry_after_ms=1, limit=text))
    raise InvalidRequest(FieldViolation("messages", text))
    yield

generation.GenerationHandler.Chat = chat
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights."""
    return synthesize("phi3-tiny", tmp_path_factory.mktemp("models") / "tiny")


def test_no_text_leaves_the_server_but_in_its_answer(model: Path) -> None:
    """Chats, completions, errors, cancels, malformed requests and deaths of the engine leave no text anywhere."""
    found = run_session(model)
    # The session did what it should: both processes talked, calls were traced and counted, and refused.
    for event in (b"request.finished", b"engine.died", b"server.stopped", b'"level": "debug"'):
        assert event in found["output"], event
    assert b"gen_ai.usage.input_tokens" in found["traces"]
    assert b"edgephi_engine_deaths_total" in found["metrics"]
    assert b"QUARANTINED" in found["error details"]
    assert leaks(found, Tokenizer.from_model_dir(model)) == set()


def test_a_server_that_leaks_is_found_out(model: Path) -> None:
    """The negative control: text in a log line, a metric, a span and an error is found in each of them."""
    found = run_session(model, prelude=LEAKY, is_whole=False)
    assert leaks(found, Tokenizer.from_model_dir(model)) == {"output", "metrics", "traces", "error details"}


@pytest.mark.parametrize("form", ["text", "beginning", "hex", "base64", "ids"])
def test_every_form_of_the_text_is_found(model: Path, form: str) -> None:
    """The search finds the text cut off, encoded, or as token ids."""
    tokenizer = Tokenizer.from_model_dir(model)
    written = {
        "text": TEXT,
        "beginning": f"Message(content='{TEXT[:9]}...",
        "hex": TEXT.encode().hex(),
        "base64": base64.b64encode(b"ab" + TEXT.encode()).decode(),
        "ids": repr(tuple(tokenizer.encode(TEXT))),
    }[form]
    assert leaks({"log": f'{{"event": "debug", "it": "{written}"}}'.encode()}, tokenizer) == {"log"}
    assert leaks({"log": MARK[:5].encode()}, tokenizer) == set()
