"""The package as a user gets it: the wheel's contents, and the wheel at work in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgephi.profile.boards.catalogue import shipped_files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "artifact", "cli", "client", "compiler", "engine", "generation", "pocket", "profile", "runtime", "server", "text",
    "v1",
)  # fmt: skip


def run(*command: str | Path, **environment: str) -> str:
    """Run a command in a clean environment and return what it printed."""
    clean = {"PATH": os.environ["PATH"], "HOME": environment.pop("HOME", os.environ["HOME"]), **environment}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run([str(part) for part in command], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the repository."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT)
    (built,) = out.glob("edgephi-*.whl")
    return built


def test_the_wheel_holds_every_package_and_nothing_else(wheel: Path) -> None:
    """The wheel has each package, typed, with the generated contract, the pocket model and the boards, and no tests."""
    names = zipfile.ZipFile(wheel).namelist()

    for package in PACKAGES:
        assert f"edgephi/{package}/__init__.py" in names
        assert f"edgephi/{package}/py.typed" in names, package
    assert "edgephi/__init__.py" not in names, "edgephi is a namespace; a file here would hide the other roots"
    assert "edgephi/v1/generation_service_pb2_grpc.pyi" in names
    assert "edgephi/v1/generation_service.proto" in names
    assert "edgephi/pocket/model/tensor-cache.json" in names
    assert {f"edgephi/profile/boards/{path.name}" for path in shipped_files()} <= set(names)
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"edgephi"}
    assert not any("__pycache__" in name or name.endswith(".so") for name in names)


@pytest.mark.tvm
def test_the_wheel_answers_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed alone into a new environment and home, it compiles the pocket model and answers a command in JSON."""
    home = tmp_path / "home"
    home.mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    binaries = tmp_path / "venv" / "bin"
    cache = run(sys.executable, "-m", "pip", "cache", "dir").strip()
    run(binaries / "pip", "install", "--quiet", "--cache-dir", cache, wheel)

    answer = run(binaries / "edgephi", "run", "turn on the hall light", HOME=str(home))

    command = json.loads(answer)
    assert command["target"] == "hall"
    assert command["intent"] == "light_on"
    assert list((home / ".cache" / "edgephi" / "build").glob("*/*/model.so")), "the bundle belongs in the user's cache"


def test_the_development_install_is_editable() -> None:
    """The environment the tests run in imports each package from the repository, from all three roots."""
    code = "import edgephi.v1 as v, edgephi.server as s, edgephi.engine as e; print(v.__file__, s.__file__, e.__file__)"
    origins = run(sys.executable, "-c", code).split()

    assert [str(Path(origin).relative_to(ROOT).parts[0]) for origin in origins] == ["proto", "service", "device"]
