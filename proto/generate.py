"""
Generate the Python of the contract beside its .proto files, or check that it is up to date.

    python proto/generate.py            write the files
    python proto/generate.py --check    generate in a temporary folder and compare; exit 1 on a difference

Owns the pinned generator versions and their environment, ``build/proto-venv``, apart from the one for development:
the oldest supported generator wants an older protobuf than the newest runtime. Generated code must not be newer
than the runtime that loads it, so the generator is the oldest release the package supports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PINS = ("grpcio-tools==1.81.1", "mypy-protobuf==5.1.0")
ROOT = Path(__file__).resolve().parent
VENV = ROOT.parent / "build" / "proto-venv"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate the Python of the contract.")
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    options = parser.parse_args(arguments)
    bin_dir = ensure_tools()
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(bin_dir, Path(folder))
        return check(generated) if options.check else install(generated)


def ensure_tools() -> Path:
    """Make the generators' environment unless it is there with these versions; return its folder of programs."""
    bin_dir = VENV / ("Scripts" if sys.platform == "win32" else "bin")
    stamp = VENV / "pins.txt"
    wanted = "\n".join(PINS)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        venv.create(VENV, with_pip=True, clear=True)
        install = [str(bin_dir / "python"), "-m", "pip", "install", "--quiet", *PINS]
        subprocess.run(install, check=True)  # noqa: S603 - pinned above
        stamp.write_text(wanted, encoding="utf-8")
    return bin_dir


def generate(bin_dir: Path, out: Path) -> dict[Path, bytes]:
    """
    Run protoc over every .proto file.

    The include path is this folder, so that generated imports read ``from edgephi.v1 import ...``.

    Returns:
        Contents by path relative to this folder.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("edgephi/*/*.proto"))
    plugins = [f"--plugin=protoc-gen-{name}={bin_dir / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{name}_out={out}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    protoc = [str(bin_dir / "python"), "-m", "grpc_tools.protoc", f"--proto_path={ROOT}"]
    subprocess.run([*protoc, *plugins, *outputs, *sources], check=True, cwd=ROOT)  # noqa: S603 - our own tools
    services = {source for source in sources if source.endswith("_service.proto")}
    made: dict[Path, bytes] = {}
    for path in sorted(out.rglob("*.py*")):
        name = path.relative_to(out)
        is_empty_grpc = "_pb2_grpc" in name.name and f"{str(name).split('_pb2_grpc')[0]}.proto" not in services
        if not is_empty_grpc:
            made[name] = path.read_bytes()
    return made


def committed() -> dict[Path, bytes]:
    """Return the generated files that are there now, by path relative to this folder."""
    found = (path for suffix in SUFFIXES for path in ROOT.glob(f"edgephi/*/*{suffix}"))
    return {path.relative_to(ROOT): path.read_bytes() for path in found}


def check(generated: dict[Path, bytes]) -> int:
    """Print each generated file that differs from the committed one; return 1 if there are any."""
    present = committed()
    stale = sorted(name for name in generated.keys() | present.keys() if generated.get(name) != present.get(name))
    for name in stale:
        print(f"proto/{name} is not what the contract generates; run: python proto/generate.py", file=sys.stderr)
    return 1 if stale else 0


def install(generated: dict[Path, bytes]) -> int:
    """Write the generated files and delete those that no .proto file accounts for; return 0."""
    for name in committed().keys() - generated.keys():
        (ROOT / name).unlink()
    for name, content in generated.items():
        (ROOT / name).write_bytes(content)
    print(f"{len(generated)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
