"""The documents tell the truth: their links lead somewhere, their examples run, their commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.command_line import assert_is_command

from edgephi.pocket import model_dir

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "tests/**/README.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)


def python_blocks(document: Path) -> list[str]:
    """The document's Python examples."""
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the pocket model."""
    command = [sys.executable, "-m", "edgephi.cli.main", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())["address"]
        server.terminate()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document names a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_file_map_is_true() -> None:
    """Each folder of README's file map exists, and each package has its line."""
    paths = re.findall(r"^\| `([^`]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    packages = {
        f"{folder.relative_to(ROOT)}/"
        for root in ("proto", "service", "device")
        for folder in (ROOT / root / "edgephi").iterdir()
        if (folder / "__init__.py").is_file()
    }

    assert all((ROOT / path).is_dir() for path in paths)
    assert packages <= set(paths)


@pytest.mark.tvm
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_run(document: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each Python example runs as it is written, with this test's server and model in place of the reader's."""
    for block in python_blocks(document):
        code = block.replace("127.0.0.1:50051", address).replace("path/to/model", str(model_dir()))
        exec(compile(code, str(document), "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path) -> None:
    """Each `edgephi` command line in a document names a command that takes its options and arguments."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, flags=re.DOTALL)
    for block in blocks:
        for line in re.findall(r"^(?:\$ )?edgephi ([^#|&\n]*)", block.replace("\\\n", " "), flags=re.MULTILINE):
            assert_is_command(line)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for line in re.findall(r"`edgephi ([^`|<…]*)`", prose):
        assert_is_command(line, is_whole=False)


def robustness_commands() -> list[str]:
    """The commands in the last column of docs/ROBUSTNESS.md."""
    text = (ROOT / "docs/ROBUSTNESS.md").read_text(encoding="utf-8")
    cells = [line.rstrip(" |").rpartition("|")[2] for line in text.splitlines() if line.startswith("| ")]
    return [command for cell in cells for command in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("command", robustness_commands())
def test_a_promise_has_a_command_that_exists(command: str) -> None:
    """What docs/ROBUSTNESS.md says to run is a target of make, a module, or tests that are there."""
    program, *words = command.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    elif program == "python":
        assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").is_file() or (
            ROOT / words[1].replace(".", "/") / "__main__.py"
        ).is_file()
    else:
        assert program == "pytest"
        assert all((ROOT / word).exists() for word in words)


def test_the_makefile_runs_commands_that_exist() -> None:
    """Each `edgephi` command in the Makefile takes the options and arguments it is given."""
    lines = re.findall(
        r"^\t\$\(BIN\)/edgephi (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert lines
    for line in lines:
        assert_is_command(line)
