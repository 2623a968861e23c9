"""Where traces go, as the command line and the environment say it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

ENDPOINT = "http://127.0.0.1:4317"


@pytest.mark.parametrize(
    "variable", ["EDGEPHI_SERVE_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
)
def test_the_endpoint_comes_from_our_variable_or_the_standard_ones(invoke: Any, variable: str) -> None:
    """Each variable sets the endpoint, and is named as its source."""
    found = json.loads(invoke("config", "show", "--json", env={variable: ENDPOINT}).stdout)["otlp_endpoint"]
    assert found == {"value": ENDPOINT, "source": "environment", "where": variable}


def test_our_variable_outranks_the_standard_ones(invoke: Any) -> None:
    """Where both are set ours counts; without any there is none."""
    env = {"EDGEPHI_SERVE_OTLP_ENDPOINT": ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert json.loads(invoke("config", "show", "--json", env=env).stdout)["otlp_endpoint"]["value"] == ENDPOINT
    assert json.loads(invoke("config", "show", "--json").stdout)["otlp_endpoint"]["value"] is None


def test_a_missing_extra_stops_the_start(fake: Any) -> None:
    """Without OpenTelemetry an endpoint is refused before the model is loaded, with the command that installs it."""
    without = "import sys; sys.modules['opentelemetry.sdk'] = None; from edgephi.cli.main import main; main()"
    command = [sys.executable, "-c", without, "serve", "--port", "0", *fake, "--otlp-endpoint", ENDPOINT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "pip install 'edgephi[otel]'" in result.stderr
    assert "server.listening" not in result.stderr
