"""The configuration file of ``edgephi serve``, its order of precedence, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from edgephi.cli.config_file import SERVE_PREFIX, settable
from edgephi.cli.serve import serve as serve_command


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Return a function that writes a configuration file."""

    def run(text: str) -> Path:
        path = tmp_path / "edgephi.yaml"
        path.write_text(text)
        return path

    return run


def show(invoke: Any, *arguments: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what `edgephi config show` says of each option."""
    result = invoke("config", "show", "--json", *arguments, env=env)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_flag_outranks_a_variable_which_outranks_the_file(invoke: Any, write: Any) -> None:
    """Each option comes from the strongest source that sets it, and show tells which, with line or variable."""
    path = write("# what is served\nport: 1\nmax_running: 2\nfloor: 3.5\n")
    found = show(
        invoke,
        "--config",
        path,
        "--port",
        "9",
        env={"EDGEPHI_SERVE_PORT": "8", "EDGEPHI_SERVE_MAX_RUNNING": "7"},
    )
    assert found["port"] == {"value": 9, "source": "flag", "where": None}
    assert found["max_running"] == {"value": 7, "source": "environment", "where": "EDGEPHI_SERVE_MAX_RUNNING"}
    assert found["floor"] == {"value": 3.5, "source": "file", "where": f"{path}:4"}
    assert found["grace"] == {"value": 20.0, "source": "default", "where": None}


@pytest.mark.parametrize("variable", ["EDGEPHI_CONFIG", "EDGEPHI_SERVE_CONFIG"])
def test_the_environment_names_the_file(invoke: Any, write: Any, variable: str) -> None:
    """The file that a variable names is the one that is read, by show and by check."""
    path = write("port: 4242\n")
    env = {"EDGEPHI_CONFIG": "", variable: str(path)}
    assert show(invoke, env=env)["port"]["where"] == f"{path}:1"
    assert invoke("config", "check", env=env).stdout == f"{path}: 1 setting, no mistake\n"


def test_the_users_own_file_is_found(invoke: Any, tmp_path: Path) -> None:
    """Without a name the file in the user's configuration folder is read; it need not be there."""
    env = {"EDGEPHI_CONFIG": "", "XDG_CONFIG_HOME": str(tmp_path)}
    assert "no configuration file" in invoke("config", "check", env=env).stdout
    path = tmp_path / "edgephi" / "edgephi.yaml"
    path.parent.mkdir()
    path.write_text("port: 4243\n")
    assert show(invoke, env=env)["port"] == {"value": 4243, "source": "file", "where": f"{path}:1"}


def test_every_option_can_be_set_by_the_file(invoke: Any, write: Any) -> None:
    """The options of serve are the list of fields: each takes in the file what it takes on the command line."""
    options = {name: option for name, option in settable(serve_command).items() if name != "config"}
    assert {"port", "model", "kv_tokens", "grace"} < options.keys()
    path = write("".join(f"{name}: {_sample(option)}\n" for name, option in options.items()))
    found = show(invoke, "--config", path)
    assert found.keys() == options.keys()
    assert {entry["source"] for entry in found.values()} == {"file"}


def _sample(option: click.Option) -> str:
    if option.is_flag:
        return "true"
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    return "3GiB" if option.name == "memory" else "3"


def test_check_lists_every_mistake(invoke: Any, write: Any) -> None:
    """Check names each mistake with file, line, value and what is expected or meant, and exits with 2."""
    path = write(
        "port: abc\nmax-running: 2\nmetrics_prot: 1\nfloor: 0\nengine: [fake]\nkv_dtype: int4\nmodel:\nzzz: 1\n"
    )
    result = invoke("config", "check", path, env={"EDGEPHI_SERVE_MAX_RUNING": "secret", "EDGEPHI_SERVE_GRACE": "soon"})
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    expected = [
        (f"{path}:1: port: ", "'abc'", "integer"),
        (f"{path}:2: ", "'max-running'", "did you mean max_running?"),
        (f"{path}:3: ", "'metrics_prot'", "did you mean metrics_port?"),
        (f"{path}:4: floor: ", "0", "x>0"),
        (f"{path}:5: engine: ", "a list of 1", "one value"),
        (f"{path}:6: kv_dtype: ", "'int4'", "'int8'"),
        (f"{path}:7: model: ", "nothing", "one value"),
        (f"{path}:8: ", "'zzz'", "--help"),
        ("environment variable EDGEPHI_SERVE_GRACE: ", "'soon'", "float"),
        ("unknown environment variable EDGEPHI_SERVE_MAX_RUNING", "did you mean", "EDGEPHI_SERVE_MAX_RUNNING?"),
    ]
    assert len(lines) == len(expected)
    for line, (start, *parts) in zip(lines, expected, strict=True):
        assert line.startswith(start)
        assert all(part in line for part in parts), line
    assert "secret" not in result.output
    assert json.loads(invoke("config", "check", path, "--json").stdout)["problems"] == lines[:8]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host: 0.0.0.0\n", "there is no TLS"),
        ("tls_cert: a.pem\n", "belong together"),
        ("- 1\n", "expected fields"),
        ("port: 1\nport: 2\n", "again"),
        ("port: 1\n  x: 2\n", "not YAML"),
        ("port: !!int 1\n", "the tag"),
    ],
)
def test_check_judges_the_file_as_a_whole(invoke: Any, write: Any, text: str, said: str) -> None:
    """What is no YAML, and values that do not go together, are mistakes too."""
    result = invoke("config", "check", write(text))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_check_accepts_a_file_of_comments(invoke: Any, write: Any) -> None:
    """A file whose lines are all commented out sets nothing and is no mistake."""
    path = write("# port: 1\n")
    assert invoke("config", "check", path).stdout == f"{path}: 0 settings, no mistake\n"


@pytest.mark.parametrize(
    ("text", "env", "said"),
    [
        ("prt: 1\nmodle: pocket\n", {}, "unknown setting 'prt'; did you mean port? (and 1 more"),
        ("port: x\n", {}, "'x' is not a valid integer"),
        ("", {f"{SERVE_PREFIX}PORTS": "1"}, "did you mean EDGEPHI_SERVE_PORT?"),
        (None, {}, "No such file"),
    ],
)
def test_serve_starts_with_no_mistake_only(
    invoke: Any, write: Any, tmp_path: Path, text: str | None, env: dict[str, str], said: str
) -> None:
    """A mistake in the file or the environment ends the start before anything is loaded."""
    path = tmp_path / "none.yaml" if text is None else write(text)
    result = invoke("serve", "--config", path, env=env)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_serve_takes_its_options_from_the_file(spawn: Any, tiny: Path, write: Any) -> None:
    """The server runs by the file, and logs once what was chosen and where."""
    path = write(f"model: {tiny}\nengine: fake\nport: 0\nkv_tokens: 512\nmax_running: 3\n")
    process = spawn("serve", "--config", path, "--json")
    ready = json.loads(process.stdout.readline())
    assert (ready["kv_tokens"], ready["max_running"]) == (512, 3)
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    (line,) = [entry for entry in map(json.loads, log.splitlines()) if entry["event"] == "config.resolved"]
    assert line["settings"]["kv_tokens"] == f"512 ({path}:4)"
    assert "grace" not in line["settings"], "defaults are not chosen"
