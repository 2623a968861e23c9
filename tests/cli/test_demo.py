from __future__ import annotations

import json
from typing import Any

from edgephi.cli.compose import FAKE_ANSWER


def test_demo_tells_the_whole_story(invoke: Any, fake: tuple[str, ...]) -> None:
    """Demo starts a server, streams an answer with its speed, and reports the server's clean exit."""
    result = invoke("demo", "--prompt", "hello", *fake)
    assert result.exit_code == 0, result.output
    # The longest answer it asks for is shorter than the fake one.
    assert "you:   hello\nmodel: This is the fake engine" in result.stdout
    assert "tok/s)" in result.stdout
    assert "exited with status 0" in result.stdout


def test_demo_json(invoke: Any, fake: tuple[str, ...]) -> None:
    """Demo --json prints one object with the answers and the server's exit status."""
    value = json.loads(invoke("demo", "--json", "--prompt", "hello", "--prompt", "again", *fake).stdout)
    assert [answer["prompt"] for answer in value["answers"]] == ["hello", "again"]
    assert all(FAKE_ANSWER.startswith(answer["text"]) for answer in value["answers"])
    assert value["server_exit_status"] == 0


def test_demo_shows_why_the_server_did_not_start(invoke: Any) -> None:
    """When the server cannot start, demo fails with the end of its log."""
    result = invoke("demo", "--model", "nosuch")
    assert result.exit_code == 1
    assert "no model 'nosuch'" in result.stderr
