from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from edgephi.cli.main import cli
from edgephi.cli.options import DEFAULT_TARGET
from edgephi.cli.serve import serve
from edgephi.cli.watchdog import MAX_STALL_S
from edgephi.client import options as client_options
from edgephi.server.app import SERVICES
from edgephi.server.lifecycle import LIVENESS, READINESS
from edgephi.server.settings import ServerSettings

# Read by edgephi, and no option of a command.
OTHER_VARIABLES = {"EDGEPHI_MODELS", "EDGEPHI_DEBUG"}
PREFIXES = {"EDGEPHI_SERVE", "EDGEPHI_HEALTH"}  # what README.md calls the variables of a command
Variables = dict[str, click.Option]


def _instructions(deploy: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) of the Dockerfile, continued lines joined."""
    text = "\n".join(line for line in (deploy / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def _arguments(deploy: Path, name: str) -> list[str]:
    return [arguments for instruction, arguments in _instructions(deploy) if instruction == name]


def _docker_env(deploy: Path) -> dict[str, str]:
    pairs = [pair.split("=", 1) for line in _arguments(deploy, "ENV") for pair in shlex.split(line)]
    return dict(pairs)


def _compose(deploy: Path) -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]["edgephi"]
    return service


def _unit(deploy: Path) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    unit.read_string((deploy / "edgephi.service").read_text())
    return unit


def _settings_file(deploy: Path) -> dict[str, str]:
    """Return the settings of edgephi.yaml as variables, those that are commented out included."""
    found = re.findall(r"^#?([a-z_]+): (.*)$", (deploy / "edgephi.yaml").read_text(), flags=re.MULTILINE)
    return {f"EDGEPHI_SERVE_{name.upper()}": value for name, value in found}


def _parses(command_line: list[str]) -> bool:
    """Whether the command line is one that edgephi takes; raises what click would print."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        command = command.commands[command_line[0]]
        command_line = command_line[1:]
    command.make_context("edgephi", list(command_line), parent=context)
    return True


def test_every_variable_sets_an_option(deploy: Path, variables: Variables) -> None:
    """Each EDGEPHI_ variable in a deployment file is one that edgephi reads."""
    known = variables.keys() | OTHER_VARIABLES
    for file in filter(Path.is_file, deploy.rglob("*")):
        found = set(re.findall(r"\bEDGEPHI_[A-Z_]*[A-Z]\b", file.read_text()))
        assert found <= known | PREFIXES, file.name


def test_values_are_ones_the_options_take(deploy: Path, variables: Variables) -> None:
    """Each value given to a variable is of its option's type."""
    compose = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in _compose(deploy)["environment"].items()
    }
    for settings in (_docker_env(deploy), compose, _settings_file(deploy)):
        for name, value in settings.items():
            assert name in variables or not name.startswith("EDGEPHI_SERVE_"), name
            if name in variables:
                variables[name].type_cast_value(click.Context(serve), value)


def test_image_copies_what_exists(deploy: Path, root: Path) -> None:
    """Every path the image copies from the repository is there, and its ignore file lets it through."""
    allowed = [line[1:] for line in (deploy / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied: list[str] = []
    for arguments in _arguments(deploy, "COPY"):
        if not arguments.startswith("--from"):
            copied += arguments.split()[:-1]
    assert copied
    for path in copied:
        assert (root / path).exists()
        assert path in allowed


def test_image_holds_every_source_root(deploy: Path, root: Path) -> None:
    """The image's wheel is built from all the folders that the project file lists."""
    import tomllib

    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = " ".join(_arguments(deploy, "COPY"))
    assert all(folder in copied for folder in wheel["only-include"])


def test_image_runs_commands_that_exist(deploy: Path) -> None:
    """The image's command and health check are command lines that edgephi takes."""
    assert json.loads(_arguments(deploy, "ENTRYPOINT")[0]) == ["edgephi"]
    assert _parses(json.loads(_arguments(deploy, "CMD")[0]))
    (check,) = _arguments(deploy, "HEALTHCHECK")
    command = json.loads(check.split("CMD", 1)[1])
    assert command[0] == "edgephi"
    assert _parses(command[1:])


def test_image_is_not_root_and_not_musl(deploy: Path) -> None:
    """The image runs as user 65532 on Debian, whose C library the wheels are made for."""
    assert _arguments(deploy, "USER") == ["65532:65532"]
    assert all(arguments.startswith("debian:bookworm-slim") for arguments in _arguments(deploy, "FROM"))


def test_image_writes_below_its_volume_only(deploy: Path) -> None:
    """Models and caches are below the volume, so the root can be read-only; Compose mounts that volume."""
    (volume,) = json.loads(_arguments(deploy, "VOLUME")[0])
    env = _docker_env(deploy)
    assert all(env[name].startswith(volume + "/") for name in ("EDGEPHI_MODELS", "XDG_CACHE_HOME", "HF_HOME"))
    service = _compose(deploy)
    assert service["read_only"] is True
    assert service["volumes"] == [f"state:{volume}"]
    assert "/tmp" in service["tmpfs"]


def test_ports_agree(deploy: Path) -> None:
    """The image, Compose, the environment file, the client and the server mean the same ports."""
    port = str(ServerSettings().port)
    assert f"127.0.0.1:{port}" == DEFAULT_TARGET == client_options.DEFAULT_TARGET
    defaults = {option.name: option.default for option in serve.params}
    assert str(defaults["port"]) == port
    metrics = _settings_file(deploy)["EDGEPHI_SERVE_METRICS_PORT"]
    assert _arguments(deploy, "EXPOSE") == [f"{port} {metrics}"]
    assert _compose(deploy)["environment"]["EDGEPHI_SERVE_METRICS_PORT"] == metrics
    assert _compose(deploy)["ports"] == [f"127.0.0.1:{number}:{number}" for number in (port, metrics)]
    assert _settings_file(deploy)["EDGEPHI_SERVE_PORT"] == port


def test_nothing_is_published_to_the_network_without_tls(deploy: Path) -> None:
    """Where Compose turns TLS off, every published port is bound to this machine; the image does not turn it off."""
    service = _compose(deploy)
    assert service["environment"]["EDGEPHI_SERVE_INSECURE_LAN"] == "1"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "EDGEPHI_SERVE_INSECURE_LAN" not in _docker_env(deploy)


def test_stopping_leaves_time_to_drain(deploy: Path) -> None:
    """Compose and systemd wait longer than running answers may take and their last messages."""
    from edgephi.server.app import LAST_MESSAGES_S

    grace = next(option.default for option in serve.params if option.name == "grace")
    needed = float(str(grace)) + LAST_MESSAGES_S
    assert int(_compose(deploy)["stop_grace_period"].removesuffix("s")) > needed
    assert int(_unit(deploy)["Service"]["TimeoutStopSec"]) > needed


def test_unit_runs_a_command_that_exists(deploy: Path) -> None:
    """The unit's command is one that edgephi takes, without privileges and with folders of its own."""
    section = _unit(deploy)["Service"]
    program, *arguments = shlex.split(section["ExecStart"])
    assert program.endswith("/bin/edgephi")
    assert _parses(arguments)
    assert (section["DynamicUser"], section["NoNewPrivileges"], section["ProtectSystem"]) == ("yes", "yes", "strict")
    assert section["StateDirectory"] == section["CacheDirectory"] == "edgephi"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_unit_is_one_that_systemd_accepts(deploy: Path, tmp_path: Path) -> None:
    """Systemd finds nothing to say of the unit, given a program that exists here."""
    unit = tmp_path / "edgephi.service"
    unit.write_text((deploy / "edgephi.service").read_text().replace("/opt/edgephi/bin/edgephi", sys.executable))
    run = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "edgephi.service" not in run.stderr


def test_the_settings_file_has_no_mistake(deploy: Path, tmp_path: Path) -> None:
    """`edgephi config check` accepts the file as it is, and with every commented line in force."""
    text = (deploy / "edgephi.yaml").read_text()
    whole = tmp_path / "edgephi.yaml"
    whole.write_text(re.sub(r"^#([a-z_]+: )", r"\1", text, flags=re.MULTILINE))
    assert whole.read_text() != text
    for path in (deploy / "edgephi.yaml", whole):
        result = CliRunner().invoke(cli, ["config", "check", str(path)])
        assert (result.exit_code, result.stderr) == (0, "")


def test_health_checks_ask_for_a_name_that_load_does_not_take_off(deploy: Path) -> None:
    """Image and Compose ask for the service, the README for the three kinds of names; the server knows all of them."""
    (image,) = _arguments(deploy, "HEALTHCHECK")
    command = json.loads(image[image.index("CMD") + 3 :])
    assert command == _compose(deploy)["healthcheck"]["test"][1:]
    assert _parses(command[1:])
    assert command[command.index("--service") + 1] in SERVICES
    text = (deploy / "README.md").read_text()
    assert set(re.findall(r"service: (\w+)}", text)) == {LIVENESS, READINESS}
    assert all(f"`{name}`" in text for name in (LIVENESS, READINESS, SERVICES[0]))


def test_unit_is_watched_and_drains(deploy: Path) -> None:
    """The unit counts as started when it says so, must show life, and only the server itself gets the first signal."""
    section = _unit(deploy)["Service"]
    assert section["Type"] == "notify"
    assert int(section["WatchdogSec"]) / 2 > MAX_STALL_S, "an engine that hangs is ended by its supervisor first"
    assert section["KillMode"] == "mixed"


def test_readme_names_files_and_commands_that_exist(deploy: Path) -> None:
    """The folder's README lists its files, and every edgephi command in it is one that exists."""
    text = (deploy / "README.md").read_text()
    files = {file.name for file in deploy.iterdir()} - {"README.md"}
    assert all(f"`{name}`" in text for name in files)
    commands = re.findall(r"edgephi (run|model|ps|serve|health|doctor)((?: (?:pull|compile|list))?)", text)
    assert commands
    for name, sub in commands:
        command = cli.commands[name]
        if sub:
            assert isinstance(command, click.Group)
            assert sub.strip() in command.commands
