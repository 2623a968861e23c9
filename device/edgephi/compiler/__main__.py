"""
``python -m edgephi.compiler MODEL OUT OPTIONS``: compile one model; how other processes reach the compiler.

OPTIONS is ``artifact.bundle.BundleOptions`` as JSON. Progress goes to standard output, a JSON array
``[label, done_bytes, total_bytes]`` a line; an error is an object ``{"error": class, "message": text}`` as the last
line and exit status 1.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TextIO

import msgspec

from edgephi.artifact.bundle import BundleOptions
from edgephi.errors import CompileFailed, EdgephiError


def main(arguments: list[str], reader: TextIO) -> int:
    """Compile as *arguments* say, tell *reader* about it and return the exit status."""
    model, out, options = arguments

    def report(label: str, done: int, total: int) -> None:
        send([label, done, total])

    def send(value: object) -> None:
        reader.write(json.dumps(value) + "\n")
        reader.flush()

    report("loading the compiler", 0, 0)
    from edgephi.compiler.pipeline import compile_model

    try:
        compile_model(Path(model), Path(out), msgspec.json.decode(options, type=BundleOptions), report)
    except EdgephiError as error:
        send({"error": type(error).__name__, "message": str(error)})
        return 1
    except OSError as error:  # a full or failing disk; nothing was put in place
        send({"error": CompileFailed.__name__, "message": f"writing {out} failed: {error}; free space or permit it"})
        return 1
    return 0


def take_stdout() -> TextIO:
    """
    Return standard output for progress alone.

    Whatever else prints, TVM's C++ included, goes to standard error from now on.
    """
    reader = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reader


if __name__ == "__main__":
    with take_stdout() as progress:
        sys.exit(main(sys.argv[1:], progress))
