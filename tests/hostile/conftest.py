"""The server of tests/server, for tests that treat it badly."""

from __future__ import annotations

from tests.server.conftest import device, model_dir, serve, serve_in_thread, tokenizer, tokenizer_json

__all__ = ["device", "model_dir", "serve", "serve_in_thread", "tokenizer", "tokenizer_json"]
