from __future__ import annotations

import json
import shutil
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from edgephi.cli.compose import FAKE_ANSWER
from edgephi.client import Client, StreamCut

TIMEOUT_S = 60
SECRET = "the-secret-word-of-this-prompt"


def test_ready_line_says_what_is_served(serve: Any) -> None:
    """The ready object names the address, the model, its sizes and the process."""
    with serve("--kv-tokens", "512", "--max-running", "2") as server:
        ready = server.ready
        assert ready["model"] == "models/tiny"
        assert (ready["context_tokens"], ready["kv_tokens"], ready["max_running"]) == (256, 512, 2)
        assert ready["pid"] == server.process.pid
        assert server.stop() == 0


def test_ready_line_for_people_tells_the_next_step(spawn: Any, fake: tuple[str, ...]) -> None:
    """Without --json the ready line ends with a command that works."""
    process = spawn("serve", "--port", "0", *fake)
    line = process.stdout.readline()
    address = line.split("--connect ")[1].split()[0]
    assert line.startswith("ready: tiny (q4f16_1) on 127.0.0.1:")
    with Client(address) as client:
        assert client.chat("hi").read() == FAKE_ANSWER
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_run_connect_answers_as_in_process(serve: Any, invoke: Any) -> None:
    """Run --connect streams the server's answer; its JSON has the same keys as in process."""
    with serve() as server:
        result = invoke("run", "hello", "--connect", server.address)
        assert (result.exit_code, result.stdout) == (0, FAKE_ANSWER + "\n")
        value = json.loads(
            invoke("run", "hi", "--raw", "--json", "-n", "3", "--logprobs", "1", "--connect", server.address).stdout
        )
        assert (value["output_tokens"], value["finish_reason"], value["model"]) == (3, "length", "tiny")
        assert len(value["logprobs"]) == 3
        refused = invoke("run", "hi", "--connect", server.address, "--temperature", "9")
        assert refused.exit_code == 1
        assert "temperature" in refused.stderr


def test_ps_and_health_describe_the_server(serve: Any, invoke: Any) -> None:
    """Ps shows model, state and load; health says serving; both have JSON."""
    with serve() as server:
        table = invoke("ps", "--connect", server.address, "--interval", "0.1").stdout.splitlines()
        assert table[0].split()[:4] == ["MODEL", "STATE", "SIZE", "KV"]
        assert table[1].split()[:2] == ["tiny", "ready"]
        (row,) = json.loads(invoke("ps", "--connect", server.address, "--interval", "0.1", "--json").stdout)
        assert (row["running"], row["waiting"], row["kv_tokens"]) == (0, 0, 4096)
        assert invoke("health", "--connect", server.address).stdout == "serving\n"
        alive = invoke("health", "--connect", server.address, "--service", "liveness", "--json")
        assert json.loads(alive.stdout) == {"address": server.address, "is_serving": True, "reason": None}
        unknown = invoke("health", "--connect", server.address, "--service", "no.Such")
        assert (unknown.exit_code, unknown.stdout) == (1, "not serving\n")


def test_health_of_no_server_fails_quickly(invoke: Any) -> None:
    """Health exits with 1 where nothing listens, well before its timeout."""
    started_at = time.monotonic()
    result = invoke("health", "--connect", "127.0.0.1:1", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["is_serving"] is False
    assert time.monotonic() - started_at < 3


def test_sigterm_lets_a_running_answer_finish(serve: Any) -> None:
    """After SIGTERM the running answer arrives whole, a new one is refused, and the exit status is 0."""
    with serve() as server, Client(server.address, can_retry=False) as client:
        stream = client.chat("hello")
        pieces = iter(stream)
        text = next(pieces)
        server.process.send_signal(signal.SIGTERM)
        text += "".join(pieces)
        assert text == FAKE_ANSWER
        assert server.process.wait(TIMEOUT_S) == 0


def test_grace_bounds_the_drain(serve: Any) -> None:
    """With --grace 0 a running answer ends at once, and its client is told that it is a fragment."""
    with serve("--grace", "0") as server, Client(server.address, can_retry=False) as client:
        stream = client.chat("hello")
        pieces = iter(stream)
        text = next(pieces)
        assert server.stop() == 0
        with pytest.raises(StreamCut) as caught:
            text += "".join(pieces)
        assert caught.value.reason == "DRAINING"
        assert stream.final is None
        assert len(text) < len(FAKE_ANSWER)


def test_second_signal_ends_at_once(serve: Any) -> None:
    """A second SIGTERM does not wait for the answer that is running."""
    with serve() as server, Client(server.address, can_retry=False) as client:
        next(iter(client.chat("hello")))
        server.process.send_signal(signal.SIGTERM)
        _wait_for(server, "server.draining")
        assert server.stop() == 128 + signal.SIGTERM


def test_log_is_json_and_holds_no_prompt(serve: Any, invoke: Any) -> None:
    """Every log line is a JSON object with time, level and event; neither prompt nor answer is in it."""
    with serve() as server:
        invoke("run", SECRET, "--connect", server.address)
        invoke("run", SECRET, "--connect", server.address, "--temperature", "9")
        assert server.stop() == 0
        log = server.log()
        lines = [json.loads(line) for line in log.splitlines()]
        assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)
        assert "request.finished" in {line["event"] for line in lines}
        assert SECRET not in log
        assert "fake engine" not in log


def test_metrics_page(serve: Any) -> None:
    """--metrics-port serves a Prometheus page."""
    with serve("--metrics-port", "0") as server:
        url = f"http://127.0.0.1:{server.ready['metrics_port']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            assert b"edgephi" in page.read()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "there is no TLS"),
        (("--tls-cert", "/nowhere.pem"), "belong together"),
        (("--tls-cert", "/nowhere.pem", "--tls-key", "/nowhere.key"), "cannot be read"),
        (("--port", "70000"), "port is 70000"),
    ],
)
def test_bad_settings_stop_the_start(spawn: Any, fake: tuple[str, ...], arguments: tuple[str, ...], said: str) -> None:
    """A setting that cannot be used ends the start with status 1 and one line that says why."""
    process = spawn("serve", "--port", "0", *fake, *arguments)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (1, "")
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_taken_port_is_named(spawn: Any, fake: tuple[str, ...]) -> None:
    """A port that another program has ends the start with its number."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = spawn("serve", "--port", str(port), *fake)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in errors


@pytest.mark.tvm
def test_serve_computes_with_tvm(serve: Any, invoke: Any, tiny: Path) -> None:
    """A compiled model behind the server gives the answer that the same model gives in process."""
    arguments = ("run", "hello", "--json", "-n", "8", "--temperature", "0")
    with serve(options=("--model", tiny, "--threads", "1")) as server:
        assert server.ready["threads"] == 1
        assert server.ready["level"] is not None
        remote = json.loads(invoke(*arguments, "--connect", server.address).stdout)
        assert server.stop() == 0
    local = json.loads(invoke(*arguments, "--model", tiny, "--threads", "1").stdout)
    assert remote["text"] == local["text"]


@pytest.mark.tvm
def test_sigterm_while_compiling_ends_at_once(spawn: Any, tiny: Path, tmp_path: Path) -> None:
    """SIGTERM before the model is loaded does not wait for the compiler."""
    model = shutil.copytree(tiny, tmp_path / "fresh", ignore=shutil.ignore_patterns("build"))
    process = spawn("serve", "--port", "0", "--model", model)
    assert any("model.compiling" in line for line in process.stderr)
    asked_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 0
    assert time.monotonic() - asked_at < 1


def _wait_for(server: Any, event: str) -> None:
    deadline = time.monotonic() + 20
    while event not in server.log():
        assert time.monotonic() < deadline
        time.sleep(0.02)
