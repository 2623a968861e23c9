"""Pulling a model from a hub: a local server speaks the paths that huggingface_hub uses."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from edgephi.artifact.config import load_config
from edgephi.artifact.manifest import verify_model
from edgephi.artifact.pull import KNOWN_MODELS, pull_model
from edgephi.artifact.shards import ShardWriter
from edgephi.artifact.store import list_models
from edgephi.artifact.weights import open_weights
from edgephi.errors import ConfigError, IntegrityError, ModelInvalid, ModelNotFound, UnsupportedModel

REPOSITORY = "someone/Tiny-q4f16_1-MLC"
NAME = "Tiny-q4f16_1-MLC"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = "params_shard_0.bin"
HALF = 610176 // 2


class Seen(NamedTuple):
    """One request for a file's bytes."""

    file: str
    range: str | None


@dataclass
class Hub:
    """
    A hub with one repository.

    Attributes:
        files: Name to content.
        faults: Name to what the next downloads do instead of succeeding: "corrupt", "cut", "forbid".
        seen: Downloads asked for, in order.
        authorizations: Every Authorization header that arrived.
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    url: str = ""


def handler_for(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """Return a request handler that serves the hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            if "Authorization" in self.headers:
                hub.authorizations.append(self.headers["Authorization"])
            path = self.path.partition("?")[0]
            if path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/v1"):
                info = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
                self.send(200, json.dumps(info).encode(), with_body=with_body)
                return
            name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
            if name not in hub.files:
                self.send(404, b"{}", with_body=with_body, headers={"X-Error-Code": "RepoNotFound"})
                return
            data = hub.files[name]
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if not with_body:
                self.send(200, data, with_body=False, headers=headers)
                return
            asked = self.headers.get("Range")
            hub.seen.append(Seen(name, asked))
            fault = hub.faults[name].pop(0) if hub.faults.get(name) else None
            if fault == "forbid":
                self.send(403, b"{}", with_body=True)
            elif fault == "cut":
                self.send(200, data, with_body=True, headers=headers, cut_at=len(data) // 2)
            elif asked is not None:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send(206, data[start:], with_body=True, headers=headers)
            else:
                sent = bytes([data[0] ^ 1]) + data[1:] if fault == "corrupt" else data
                self.send(200, sent, with_body=True, headers=headers)

        def send(
            self,
            status: int,
            body: bytes,
            *,
            with_body: bool,
            headers: dict[str, str] | None = None,
            cut_at: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body[:cut_at])
            if cut_at is not None:
                self.close_connection = True

    return Handler


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the tiny model on the loopback device, and point the models folder and the hub's own at the test's."""
    monkeypatch.setenv("EDGEPHI_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    # Small steps, so that an interrupted transfer of a small file has something to resume from.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 15)
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    served = Hub(files | {"README.md": b"# read me", "evil.py": b"raise SystemExit"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()


def test_model_is_installed_whole(hub: Hub, tmp_path: Path) -> None:
    """A pulled model is verified, listed under the repository's name, and holds the model's files only."""
    seen: list[tuple[int, int]] = []
    out = pull_model(REPOSITORY, endpoint=hub.url, progress=lambda label, done, total: seen.append((done, total)))
    assert out == tmp_path / "models" / NAME
    verify_model(out)
    assert [model.name for model in list_models()] == [NAME]
    assert sorted(path.name for path in out.rglob("*")) == sorted(set(hub.files) - {"README.md", "evil.py"})
    assert not (out.parent / f".{NAME}.download").exists()
    assert seen[-1] == (610176, 610176)
    assert hub.authorizations == []


def test_destination_and_revision_are_used(hub: Hub, tmp_path: Path) -> None:
    """A named folder and a named revision are honoured."""
    out = pull_model(REPOSITORY, dest=tmp_path / "here" / "tiny", endpoint=hub.url, revision="v1")
    assert out == tmp_path / "here" / "tiny"
    assert load_config(out).hidden_size == 192


def test_intact_model_is_left_alone(hub: Hub) -> None:
    """Pulling again asks the hub for nothing."""
    pull_model(REPOSITORY, endpoint=hub.url)
    hub.seen.clear()
    pull_model(REPOSITORY, endpoint="http://127.0.0.1:1")
    assert hub.seen == []


def test_damaged_installed_model_is_replaced(hub: Hub) -> None:
    """Pulling over an installed model whose shard was damaged mends it."""
    out = pull_model(REPOSITORY, endpoint=hub.url)
    (out / SHARD).write_bytes(b"rubbish")
    pull_model(REPOSITORY, endpoint=hub.url)
    verify_model(out)


def test_corrupted_shard_is_fetched_once_more(hub: Hub) -> None:
    """A shard whose digest is wrong on arrival is fetched again, and the model installed."""
    hub.faults[SHARD] = ["corrupt"]
    verify_model(pull_model(REPOSITORY, endpoint=hub.url))
    assert [seen.file for seen in hub.seen].count(SHARD) == 2


def test_shard_corrupted_twice_is_an_error(hub: Hub) -> None:
    """A shard that is wrong twice raises IntegrityError, installs nothing, and a later pull fetches it anew."""
    hub.faults[SHARD] = ["corrupt", "corrupt"]
    with pytest.raises(IntegrityError, match=r"params_shard_0\.bin has md5 [0-9a-f]{32}; expected"):
        pull_model(REPOSITORY, endpoint=hub.url)
    assert list_models() == ()
    verify_model(pull_model(REPOSITORY, endpoint=hub.url))


def test_cut_transfer_is_resumed(hub: Hub) -> None:
    """A connection that drops half way goes on from where it was, within one pull."""
    hub.faults[SHARD] = ["cut"]
    verify_model(pull_model(REPOSITORY, endpoint=hub.url))
    ranges = [seen.range for seen in hub.seen if seen.file == SHARD]
    assert ranges[0] is None
    assert resumed_at(ranges[1]) > HALF // 2


def test_interrupted_pull_is_resumed_by_the_next(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    """A pull that failed at the third shard keeps what it had; the next one fetches from the third on only."""
    shards = repacked(tiny_model, tmp_path / "repacked")
    del hub.files[SHARD]
    hub.files.update(shards)
    order = [f"params_shard_{index}.bin" for index in range(len(shards) - 1)]
    hub.faults[order[2]] = ["forbid"]
    with pytest.raises(ModelNotFound, match=f"{REPOSITORY} could not be fetched from http://127.0.0.1"):
        pull_model(REPOSITORY, endpoint=hub.url)
    assert list_models() == ()
    hub.seen.clear()
    verify_model(pull_model(REPOSITORY, endpoint=hub.url))
    assert [seen.file for seen in hub.seen] == order[2:]


def repacked(model: Path, folder: Path) -> dict[str, bytes]:
    """Return a model's weights and manifest in shards of at most 200 kB."""
    folder.mkdir()
    writer = ShardWriter(folder, cap_bytes=200_000)
    with open_weights(model) as weights:
        for name in weights.names():
            writer.add(name, weights.get(name))
    writer.finish(num_source_params=1)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) > 4
    return files


def resumed_at(asked: str | None) -> int:
    """Return the first byte a Range header asks for; 0 without one."""
    return int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0


def test_unsupported_model_costs_no_download(hub: Hub) -> None:
    """A model that cannot be run is refused after its small files, before any shard."""
    document = json.loads(hub.files["mlc-chat-config.json"])
    hub.files["mlc-chat-config.json"] = json.dumps(document | {"quantization": "q3f16_1"}).encode()
    with pytest.raises(UnsupportedModel, match="q3f16_1"):
        pull_model(REPOSITORY, endpoint=hub.url)
    assert SHARD not in [seen.file for seen in hub.seen]


def test_repository_of_another_format_is_named(hub: Hub) -> None:
    """A repository without MLC-LLM's files raises ModelInvalid that says which is missing."""
    del hub.files["tensor-cache.json"]
    with pytest.raises(ModelInvalid, match=r"has no ndarray-cache\.json"):
        pull_model(REPOSITORY, endpoint=hub.url)


def test_older_manifest_name_is_pulled(hub: Hub) -> None:
    """A repository with ndarray-cache.json installs as well."""
    hub.files["ndarray-cache.json"] = hub.files.pop("tensor-cache.json")
    verify_model(pull_model(REPOSITORY, endpoint=hub.url))


def test_full_disk_is_found_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room raises ConfigError with both sizes before any shard is fetched."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ConfigError, match=r"has 0\.00 GB free; the download needs 0\.27 GB"):
        pull_model(REPOSITORY, endpoint=hub.url)
    assert SHARD not in [seen.file for seen in hub.seen]


def test_unknown_repository_is_not_found(hub: Hub) -> None:
    """A repository the hub does not have raises ModelNotFound with its name and the hub's address."""
    with pytest.raises(ModelNotFound, match=r"someone/else could not be fetched from http://127"):
        pull_model("someone/else", endpoint=hub.url)


@pytest.mark.parametrize("name", ["nosuch", "", "a/b/c", "../x", "a/../b", "https://host/a/b"])
def test_name_that_is_no_repository_lists_the_known(name: str) -> None:
    """A name that is neither known nor a repository raises ModelNotFound with the known names, without any request."""
    with pytest.raises(ModelNotFound, match=", ".join(KNOWN_MODELS)):
        pull_model(name, endpoint="http://127.0.0.1:1")


def test_folder_with_something_else_is_kept(hub: Hub, tmp_path: Path) -> None:
    """A destination that holds other files raises ConfigError and is untouched."""
    dest = tmp_path / "mine"
    dest.mkdir()
    (dest / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists and holds no model"):
        pull_model(REPOSITORY, dest=dest, endpoint=hub.url)
    assert [path.name for path in dest.iterdir()] == ["notes.txt"]


def test_second_pull_at_once_is_refused(hub: Hub, tmp_path: Path) -> None:
    """While one pull holds the staging folder, another of the same model raises ConfigError."""
    filelock = pytest.importorskip("filelock")
    (tmp_path / "models").mkdir()
    held = filelock.FileLock(tmp_path / "models" / f".{NAME}.lock")
    with held, pytest.raises(ConfigError, match="another pull into"):
        pull_model(REPOSITORY, endpoint=hub.url)


def test_missing_extra_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub the error says what to install."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install edgephi\[hub\]"):
        pull_model(REPOSITORY, dest=tmp_path / "out")
