"""The contract's files: linted, and what was generated from them is up to date."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from edgephi.engine import request as engine
from edgephi.server import limits
from edgephi.text import stop_strings
from edgephi.v1 import (
    device_pb2,
    device_service_pb2,
    generation_pb2,
    generation_service_pb2,
    model_service_pb2,
    sampling_pb2,
)

PROTO = Path(__file__).parents[2] / "proto"
BUF = Path(sysconfig.get_path("scripts")) / "buf"
MODULES: tuple[Any, ...] = (
    device_pb2,
    device_service_pb2,
    generation_pb2,
    generation_service_pb2,
    model_service_pb2,
    sampling_pb2,
)


def test_the_contract_is_clean_by_buf() -> None:
    """Linting, with comments required everywhere, finds nothing."""
    done = subprocess.run(
        [BUF, "lint", "--error-format", "json"], cwd=PROTO, capture_output=True, text=True, check=False
    )
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == []
    assert done.returncode == 0, done.stderr


def test_generated_code_is_what_the_contract_says() -> None:
    """Every .proto file, compiled anew, is the descriptor inside the committed Python."""
    options = ("--exclude-source-info", "--exclude-imports", "--as-file-descriptor-set", "-o", "-#format=binpb")
    done = subprocess.run([BUF, "build", *options], cwd=PROTO, capture_output=True, check=True)
    compiled = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file}
    assert set(compiled) == {f"edgephi/v1/{path.name}" for path in (PROTO / "edgephi/v1").glob("*.proto")}
    committed = {}
    for module in MODULES:
        file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        committed[file.name] = file
    for name, file in compiled.items():
        for message in (*_messages(file.message_type), *_messages(committed[name].message_type)):
            for field in message.field:
                field.ClearField("json_name")  # buf writes it, protoc leaves it out
        assert committed[name] == file, f"{name} has changed; run: python proto/generate.py"


def _messages(messages: Any) -> list[Any]:
    return [found for message in messages for found in (message, *_messages(message.nested_type))]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sampling.proto", f"0 to {engine.MAX_TEMPERATURE:g}. 0 is greedy"),
        ("sampling.proto", f"1 to {engine.MAX_TOP_K:,}"),
        ("sampling.proto", f"{engine.MIN_REPETITION_PENALTY:g} to {engine.MAX_REPETITION_PENALTY:g}"),
        ("sampling.proto", f"-{engine.MAX_PENALTY:g} to {engine.MAX_PENALTY:g}"),
        ("sampling.proto", f"0 to {engine.MAX_LOGPROBS}"),
        ("sampling.proto", f"At most {stop_strings.MAX_STOP_STRINGS}, each 1 to {stop_strings.MAX_STOP_CHARACTERS}"),
        ("generation.proto", f"at most {limits.MAX_TEXT_BYTES:,} bytes"),
        ("generation.proto", f"1 to {limits.MAX_MESSAGES:,}"),
        ("generation_service.proto", f"1 to {limits.MAX_TEXT_BYTES:,} bytes"),
    ],
)
def test_the_bounds_in_the_contract_are_the_ones_that_hold(file: str, text: str) -> None:
    """A bound written in a comment is the constant the code checks."""
    assert text in (PROTO / "edgephi/v1" / file).read_text(encoding="utf-8")
