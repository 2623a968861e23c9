from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from edgephi.cli.compose import FAKE_ANSWER
from edgephi.errors import ModelNotFound

TIMEOUT_S = 60


def test_run_prints_the_answer(invoke: Any, fake: tuple[str, ...]) -> None:
    """The answer is printed with one newline at its end."""
    result = invoke("run", "hello", *fake)
    assert (result.exit_code, result.stdout) == (0, FAKE_ANSWER + "\n")


def test_run_stats_go_to_standard_error(invoke: Any, fake: tuple[str, ...]) -> None:
    """--stats adds one line on standard error and leaves standard output to the answer."""
    result = invoke("run", "hello", "--stats", "-n", "5", *fake)
    assert result.stderr.startswith("5 tokens, first token ")
    assert result.stderr.endswith(" tok/s\n")
    assert FAKE_ANSWER.startswith(result.stdout.rstrip("\n"))


@pytest.mark.tvm
def test_run_stats_tell_how_many_tokens_were_guessed(invoke: Any, tiny: Path) -> None:
    """--draft-tokens changes what an answer takes and nothing of what it says; --json has the count."""
    found = []
    for drafts in ("0", "8"):
        command = ("run", "hello", "--json", "-n", "60", "--model", tiny, "--seed", "1", "--draft-tokens", drafts)
        value = json.loads(invoke(*command, "--temperature", "0").stdout)
        assert value["output_tokens"] > value["accepted_tokens"]
        found.append(value)
    assert found[0]["text"] == found[1]["text"]
    assert found[0]["accepted_tokens"] == 0


def test_run_json_is_one_object(invoke: Any, fake: tuple[str, ...]) -> None:
    """--json prints one object with the text, why it ended and the counts."""
    result = invoke("run", "hello", "--json", "-n", "4", "--logprobs", "2", *fake)
    value = json.loads(result.stdout)
    assert value["finish_reason"] == "length"
    assert value["output_tokens"] == 4
    assert value["model"] == "tiny"
    assert [len(token["top"]) for token in value["logprobs"]] == [2, 2, 2, 2]
    assert FAKE_ANSWER.startswith(value["text"])


def test_run_reads_the_prompt_from_standard_input(invoke: Any, fake: tuple[str, ...]) -> None:
    """The prompt "-" is read from standard input; a longer text means more prompt tokens."""
    short = json.loads(invoke("run", "-", "--json", "-n", "1", *fake, stdin="hi").stdout)
    long = json.loads(invoke("run", "-", "--json", "-n", "1", *fake, stdin="hi " * 20).stdout)
    assert long["prompt_tokens"] > short["prompt_tokens"]


def test_prompt_that_is_not_text_is_refused(invoke: Any, fake: tuple[str, ...]) -> None:
    """Standard input that is not UTF-8 is refused with the place of the first bad byte."""
    result = invoke("run", "-", *fake, stdin=b"hi \xff")
    assert result.exit_code == 1
    assert "byte 3 of standard input is not UTF-8" in result.stderr


def test_run_system_and_raw_change_the_prompt(invoke: Any, fake: tuple[str, ...]) -> None:
    """A system text is added to the prompt; --raw leaves the template's tokens out."""

    def count(*more: str) -> int:
        return int(json.loads(invoke("run", "hi", "--json", "-n", "1", *fake, *more).stdout)["prompt_tokens"])

    assert count("--raw") < count() < count("--system", "Be brief.")


def test_run_stop_string_ends_the_answer(invoke: Any, fake: tuple[str, ...]) -> None:
    """A stop string ends the answer and is not printed."""
    result = invoke("run", "hello", "--stop", "engine", *fake)
    assert result.stdout == "This is the fake \n"


def test_options_come_from_the_environment(invoke: Any, tiny: Path) -> None:
    """Every option can be set by EDGEPHI_, the command and the option."""
    env = {"EDGEPHI_RUN_MODEL": str(tiny), "EDGEPHI_RUN_ENGINE": "fake", "EDGEPHI_RUN_MAX_TOKENS": "1"}
    result = invoke("run", "hello", "--json", env=env)
    assert json.loads(result.stdout)["output_tokens"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "hi", "--raw", "--system", "x"),
        ("run", "hi", "--logprobs", "1"),
        ("run", "hi", "--tls-server-name", "x"),
        ("run", "hi", "--threads", "0"),
        ("run", "hi", "--connect", "127.0.0.1:1", "--model", "pocket"),
        ("run", "hi", "--connect", "127.0.0.1:1", "--draft-tokens", "2"),
        ("run", "hi", "--draft-tokens", "-1"),
        ("bench", "--engine", "fake"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines_exit_with_2(invoke: Any, arguments: tuple[str, ...]) -> None:
    """A command line that contradicts itself is refused before anything is loaded."""
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", "3"), "sampling.temperature: is 3"),
        (("--top-k", "0", "--top-p", "7"), "sampling.top_p: is 7"),
        (("-n", "0"), "max_tokens: is 0"),
        (("-n", "100000"), "exceed the context of 256"),
    ],
)
def test_bad_values_are_one_line(invoke: Any, fake: tuple[str, ...], arguments: tuple[str, ...], said: str) -> None:
    """A value out of bounds ends with status 1 and one line that names it, without a traceback."""
    result = invoke("run", "hi", *fake, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_model_says_what_is_installed(invoke: Any) -> None:
    """A model that does not exist ends with status 1 and the list of those that do."""
    result = invoke("run", "hi", "--model", "nosuch")
    assert result.exit_code == 1
    assert "error: no model 'nosuch'" in result.stderr
    assert "installed: none" in result.stderr


def test_debug_shows_the_traceback(invoke: Any) -> None:
    """EDGEPHI_DEBUG=1 lets the error through with its traceback."""
    result = invoke("run", "hi", "--model", "nosuch", env={"EDGEPHI_DEBUG": "1"})
    assert isinstance(result.exception, ModelNotFound)


def test_level_of_another_machine_is_refused_at_once(invoke: Any, tiny: Path) -> None:
    """A level this CPU cannot run is refused before anything is compiled."""
    result = invoke("run", "hi", "--model", tiny, "--target", "z80")
    assert result.exit_code == 1
    assert "target is 'z80'; this CPU runs " in result.stderr


def test_no_server_says_how_to_start_one(invoke: Any) -> None:
    """Where no server answers, the error names the address and the remedy."""
    result = invoke("run", "hi", "--connect", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no server answers at 127.0.0.1:1 (")
    assert "edgephi serve" in result.stderr


def test_ctrl_c_ends_the_answer(spawn: Any, fake: tuple[str, ...]) -> None:
    """Ctrl-C ends a running answer at once with status 130 and no traceback."""
    process = spawn("run", "hello", *fake, bufsize=0)
    first = process.stdout.read(4)
    process.send_signal(signal.SIGINT)
    interrupted_at = time.monotonic()
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert time.monotonic() - interrupted_at < 2
    assert first == FAKE_ANSWER[:4]
    assert FAKE_ANSWER.startswith((first + output).rstrip("\n"))
    assert len(first + output) < len(FAKE_ANSWER)
    assert errors == ""


def test_ctrl_c_with_json_still_prints_the_object(serve: Any, spawn: Any) -> None:
    """Ctrl-C during --json prints what was said so far, with the reason cancelled; the server drops the answer."""
    with serve() as server:
        process = spawn("run", "hello", "--json", "--connect", server.address)
        _wait_until(lambda: '"server.ready"' in server.log() and _num_running(server.address) == 1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        value = json.loads(output)
        assert value["finish_reason"] == "cancelled"
        assert FAKE_ANSWER.startswith(value["text"])
        _wait_until(lambda: _num_running(server.address) == 0)
        line = next(line for line in map(json.loads, server.log().splitlines()) if line.get("method") == "Chat")
        assert line["code"] == "CANCELLED"


def test_unusable_folder_is_one_line(invoke: Any, tmp_path: Path) -> None:
    """A file where a folder is needed ends with its name and the reason, without a traceback."""
    (tmp_path / "file").write_text("x")
    result = invoke("model", "synth", "phi3-tiny", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "file" in result.stderr


def test_closed_pipe_ends_quietly(spawn: Any, fake: tuple[str, ...]) -> None:
    """A reader that goes away ends the command without a traceback."""
    read_end, write_end = os.pipe()
    process = spawn("run", "hello", *fake, stdout=write_end)
    os.close(write_end)
    os.close(read_end)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "Traceback" not in errors


@pytest.mark.tvm
def test_run_computes_with_tvm(invoke: Any, tiny: Path) -> None:
    """The compiled model answers, and the same seed gives the same answer again."""
    arguments = ("run", "hello", "--model", tiny, "--json", "-n", "8", "--seed", "7")
    first, second = (json.loads(invoke(*arguments).stdout) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["output_tokens"] == 8


def _num_running(address: str) -> int:
    from edgephi.client import Client

    with Client(address) as client:
        return next(iter(client.watch(0.1))).num_running


def _wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
