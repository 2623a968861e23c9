"""From nothing to a server on the network that knows its callers, with the commands a person types."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from edgephi.cli.compose import FAKE_ANSWER

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's certificates and tokens."""
    monkeypatch.setenv("EDGEPHI_CERTS", str(tmp_path / "certs"))
    monkeypatch.setenv("EDGEPHI_SERVE_TOKENS", str(tmp_path / "tokens.json"))
    monkeypatch.delenv("EDGEPHI_TOKEN", raising=False)


def _tls(tmp_path: Path) -> tuple[str | Path, ...]:
    certs = tmp_path / "certs"
    return "--host", "0.0.0.0", "--tls-cert", certs / "server.pem", "--tls-key", certs / "server.key"


def test_a_server_for_the_network_with_tokens(serve: Any, invoke: Any, tmp_path: Path) -> None:
    """Cert init, token add and serve make a server that answers who has the token, and tells others what to do."""
    assert invoke("cert", "init").exit_code == 0
    secret = invoke("token", "add", "robot").stdout.strip()
    token_file = tmp_path / "robot.token"
    token_file.write_text(f"{secret}\n")
    ca = ("--tls-ca", tmp_path / "certs" / "ca.pem")
    with serve(*_tls(tmp_path)) as server:
        there = ("--connect", f"localhost:{server.address.rpartition(':')[2]}")
        answer = invoke("run", "hi", *there, *ca, "--token-file", token_file)
        assert (answer.exit_code, answer.stdout.strip()) == (0, FAKE_ANSWER), answer.stderr
        assert invoke("ps", *there, *ca, "--json", env={"EDGEPHI_TOKEN": secret}).exit_code == 0
        assert invoke("health", *there, *ca).stdout == "serving\n"
        anonymous = invoke("run", "hi", *there, *ca)
        assert (anonymous.exit_code, "--token-file" in anonymous.stderr) == (1, True)
        # A variable that is meant for another server is not sent in the clear.
        plain = invoke("run", "hi", *there, env={"EDGEPHI_TOKEN": secret})
        assert (plain.exit_code, "speaks TLS and was asked without" in plain.stderr) == (1, True)
        assert "needs tls" in invoke("run", "hi", *there, "--token-file", token_file).stderr
        # Another certificate and a revoked token, without a restart.
        assert invoke("cert", "issue", "--server").exit_code == 0
        assert invoke("run", "hi", *there, *ca, "--token-file", token_file).exit_code == 0
        server.process.send_signal(signal.SIGHUP)
        invoke("token", "revoke", "robot")
        revoked = invoke("run", "hi", *there, *ca, "--token-file", token_file)
        assert (revoked.exit_code, "was revoked" in revoked.stderr) == (1, True)
        assert server.stop() == 0
        log = server.log()
        assert '"client": "robot"' in log
        assert "tls.rotated" in log
        for said in (log, json.dumps(server.ready), answer.stderr, anonymous.stderr, revoked.stderr, plain.stderr):
            assert secret.removeprefix("edgephi_")[:20] not in said


def test_a_server_for_the_network_with_client_certificates(
    serve: Any, invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of cert issue is enough to be answered; without one the client is told that one is wanted."""
    invoke("cert", "init")
    invoke("cert", "issue", "robot", "--out", tmp_path / "robot")
    bundle = tmp_path / "robot"
    ca = ("--tls-ca", bundle / "ca.pem")
    monkeypatch.delenv("EDGEPHI_SERVE_TOKENS")
    with serve(*_tls(tmp_path), "--tls-client-ca", tmp_path / "certs" / "ca.pem") as server:
        there = ("--connect", f"localhost:{server.address.rpartition(':')[2]}")
        own = ("--tls-cert", bundle / "client.pem", "--tls-key", bundle / "client.key")
        assert invoke("run", "hi", *there, *ca, *own).stdout.strip() == FAKE_ANSWER
        refused = invoke("run", "hi", *there, *ca)
        assert (refused.exit_code, "wants a client certificate" in refused.stderr) == (1, True)
        assert server.stop() == 0


def test_nothing_is_loaded_before_the_door_is_known(spawn: Any, invoke: Any, tmp_path: Path) -> None:
    """A network address without the rest is refused before the model is looked for, with the commands to type."""
    absent = ("--model", str(tmp_path / "absent"))
    invoke("cert", "init")

    def refusal(*arguments: str | Path) -> str:
        process = spawn("serve", "--port", "0", *absent, *arguments)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1
        assert "Traceback" not in errors
        return str(errors.splitlines()[-1])

    assert "edgephi cert init" in refusal("--host", "0.0.0.0")
    assert "edgephi token add NAME" in refusal(*_tls(tmp_path))  # the file of tokens is named, and not there
    invoke("token", "add", "robot")
    assert str(tmp_path / "absent") in refusal(*_tls(tmp_path))  # now it is the model that is missing
