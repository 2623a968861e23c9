"""Servers in this process and in processes of their own, as the tests of the server and of the commands make them."""

from __future__ import annotations

from tests.cli import conftest as _cli
from tests.server import conftest as _server

tokenizer_json, model_dir, tokenizer = _server.tokenizer_json, _server.model_dir, _server.tokenizer
device, serve = _server.device, _server.serve
spawn, tiny, fake, serve_process = _cli.spawn, _cli.tiny, _cli.fake, _cli.serve
