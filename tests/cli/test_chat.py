from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from typing import Any

from edgephi.cli.compose import FAKE_ANSWER


def test_chat_keeps_the_conversation(invoke: Any, fake: tuple[str, ...]) -> None:
    """Each turn's prompt holds the turns before it; /reset starts over; /quit ends."""
    result = invoke("chat", "--json", "-n", "4", *fake, stdin="hi\nhi\n/reset\nhi\n/quit\nnever asked\n")
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["output_tokens"]
    assert third["prompt_tokens"] == first["prompt_tokens"]
    assert second["cached_tokens"] >= 0
    assert "forgotten" in result.stderr


def test_chat_commands_answer_on_standard_error(invoke: Any, fake: tuple[str, ...]) -> None:
    """/stats tells the last answer's speed; an unknown command is named; blank lines ask nothing."""
    result = invoke("chat", "-n", "4", *fake, stdin="/stats\n\nhi\n/stats\n/dance\n")
    assert "no answer yet" in result.stderr
    assert "4 tokens, first token" in result.stderr
    assert "unknown command /dance" in result.stderr
    assert result.stdout.count("\n") == 1


def test_chat_survives_a_full_context(invoke: Any, fake: tuple[str, ...]) -> None:
    """A conversation that outgrows the context is refused and goes on after /reset."""
    turns = "a very long turn of the conversation\n" * 3
    result = invoke("chat", *fake, stdin=f"{turns}/reset\nhi\n")
    assert result.exit_code == 0
    assert "/reset forgets the conversation" in result.stderr
    assert result.stdout.splitlines()[-1] == FAKE_ANSWER


def test_chat_over_grpc(serve: Any, invoke: Any) -> None:
    """With --connect the conversation is held with a server."""
    with serve() as server:
        result = invoke("chat", "--json", "-n", "4", "--connect", server.address, stdin="hi\nhi\n")
        first, second = map(json.loads, result.stdout.splitlines())
        assert second["prompt_tokens"] > first["prompt_tokens"]


def test_ctrl_c_stops_the_answer_not_the_program(spawn: Any, fake: tuple[str, ...]) -> None:
    """In a terminal Ctrl-C ends the answer, the next turn is taken, and Ctrl-D ends the program with status 0."""
    terminal, side = pty.openpty()
    try:
        process = spawn("chat", *fake, stdin=side, stdout=side, stderr=side, start_new_session=True)
        os.close(side)
        _read_until(terminal, ">>> ")
        os.write(terminal, b"hi\n")
        _read_until(terminal, FAKE_ANSWER[:12])
        process.send_signal(signal.SIGINT)
        stopped = _read_until(terminal, ">>> ")
        assert FAKE_ANSWER[-20:] not in stopped
        os.write(terminal, b"/stats\n")
        _read_until(terminal, "was stopped\r\n>>> ")
        time.sleep(0.2)  # Python notices a signal only once it reads; the prompt is shown just before
        process.send_signal(signal.SIGINT)
        # The prompt too: before it is shown the terminal itself, not the program, would take Ctrl-D.
        _read_until(terminal, "Ctrl-D ends\r\n>>> ")
        time.sleep(0.2)
        os.write(terminal, b"\x04")
        assert process.wait(20) == 0
    finally:
        os.close(terminal)


def _read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows up to a text."""
    shown = ""
    deadline = time.monotonic() + 20
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 4096).decode()
    return shown
