"""
Download a model from a Hugging Face hub, verify it, install it.

Owns the order of the steps: small files first, so that an unsupported model or a full disk is found before gigabytes
are fetched; every shard checked as it arrives; one rename at the end. The transfer is huggingface_hub's, an optional
dependency imported here only when used.

    <models>/.<name>.download/    survives an interruption; the next pull resumes in it
    <models>/<name>/              appears complete and verified
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

from edgephi.artifact.chat_config import TOKENIZER_FILES
from edgephi.artifact.config import MLC_CONFIG, load_config
from edgephi.artifact.manifest import (
    MANIFEST,
    OLD_MANIFEST,
    Manifest,
    Progress,
    ShardRecord,
    read_manifest,
    verify_model,
    verify_shard_steps,
)
from edgephi.artifact.quantization import find_quantization
from edgephi.artifact.staging import replace_folder
from edgephi.artifact.store import models_dir
from edgephi.errors import ConfigError, EdgephiError, IntegrityError, ModelInvalid, ModelNotFound

KNOWN_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "phi3-mini-4k": "mlc-ai/Phi-3-mini-4k-instruct-q4f16_1-MLC",
        "phi3-mini-128k": "mlc-ai/Phi-3-mini-128k-instruct-q4f16_1-MLC",
        "phi3.5-mini": "mlc-ai/Phi-3.5-mini-instruct-q4f16_1-MLC",
    }
)
"""Short names and the repositories they stand for."""

SPARE_DISK_BYTES = 256 << 20  # left free beside the weights, for the compiled library and the system
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def pull_model(
    name_or_repo: str,
    *,
    dest: Path | None = None,
    endpoint: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """
    Download and install a model of MLC-LLM's format. A model that is already there and intact is left alone.

    A dropped connection is resumed where it was; a shard that arrives damaged is fetched once more. After a failure or
    a kill the next call goes on with the first shard (at most 50 MB) that was not complete.

    Args:
        name_or_repo: A key of ``KNOWN_MODELS``, or a repository such as ``mlc-ai/Phi-3-mini-4k-instruct-q4f16_1-MLC``.
        dest: Folder to install as; None for the models folder, under the short name or the repository's own.
        endpoint: Base URL of the hub; None for huggingface_hub's default. The user's saved token is sent only there.
        revision: Branch, tag or commit; None for the default branch.
        progress: Called after each shard with verified and total bytes.

    Returns:
        The installed folder.

    Raises:
        ConfigError: If huggingface_hub is not installed, the disk is too full, another pull of the model runs, or
            ``dest`` is a folder that holds something else.
        ModelNotFound: If the hub has no such model or cannot be reached.
        UnsupportedModel: If it is not a 4-bit Phi-3.
        IntegrityError: If a shard differs from the manifest twice.
    """
    repository = KNOWN_MODELS.get(name_or_repo, name_or_repo)
    if not _REPOSITORY.fullmatch(repository):
        known = ", ".join(KNOWN_MODELS)
        raise ModelNotFound(f"no model {name_or_repo!r} to pull; use {known}, or a repository as owner/name")
    name = name_or_repo if name_or_repo in KNOWN_MODELS else repository.partition("/")[2]
    out = dest if dest is not None else models_dir() / name
    if _is_intact(out, progress):
        return out
    hub = _import_hub()
    staging = out.parent / f".{out.name}.download"
    with _exclusive(staging), _quiet(hub):
        source = _Source.resolve(hub, repository, endpoint=endpoint, revision=revision, staging=staging)
        files = _fetch_small_files(source)
        manifest = read_manifest(staging)
        _check_disk(staging, manifest)
        done_bytes = 0
        for shard in manifest.shards:
            _fetch_shard(source, shard)
            done_bytes += shard.nbytes
            if progress is not None:
                progress(f"downloading {shard.path}", done_bytes, manifest.total_bytes)
        _keep_only(staging, {*files, *(shard.path for shard in manifest.shards)})
        replace_folder(staging, out)
    return out


@dataclass(frozen=True, slots=True)
class _Source:
    """One commit of a repository on a hub, and the folder it is fetched into."""

    hub: ModuleType
    repository: str
    commit: str
    files: frozenset[str]
    endpoint: str | None
    staging: Path

    @classmethod
    def resolve(
        cls, hub: ModuleType, repository: str, *, endpoint: str | None, revision: str | None, staging: Path
    ) -> _Source:
        """Ask the hub which commit and which files a revision has."""
        with _hub_errors(repository, endpoint):
            api = hub.HfApi(endpoint=endpoint, token=_token(endpoint))
            info = api.model_info(repository, revision=revision)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        return cls(hub, repository, info.sha or revision or "main", files, endpoint, staging)

    def fetch(self, file: str, *, force: bool = False) -> None:
        """Download a file into the staging folder, resuming where an earlier attempt stopped unless forced."""
        with _hub_errors(self.repository, self.endpoint):
            self.hub.hf_hub_download(
                self.repository,
                file,
                revision=self.commit,
                local_dir=self.staging,
                endpoint=self.endpoint,
                token=_token(self.endpoint),
                force_download=force,
            )


def _fetch_small_files(source: _Source) -> tuple[str, ...]:
    """Fetch the configuration, the manifest and the tokenizer, and check that the model can be run."""
    manifest = MANIFEST if MANIFEST in source.files else OLD_MANIFEST
    wanted = (MLC_CONFIG, manifest)
    missing = [file for file in wanted if file not in source.files]
    if missing:
        raise ModelInvalid(f"{source.repository} has no {missing[0]}; name a repository in MLC-LLM's format")
    # A rejected attempt must not leave the other manifest's name behind: it would be read first.
    for file in (MANIFEST, OLD_MANIFEST):
        if file != manifest:
            (source.staging / file).unlink(missing_ok=True)
    files = (*wanted, *(file for file in TOKENIZER_FILES if file in source.files))
    for file in files:
        source.fetch(file)
    find_quantization(load_config(source.staging).quantization or "")
    return files


def _fetch_shard(source: _Source, shard: ShardRecord) -> None:
    """Fetch a shard and verify it; fetch it once more if it is damaged."""
    if shard.path not in source.files:
        raise ModelInvalid(f"{source.repository} lists {shard.path} in its manifest and does not have it")
    source.fetch(shard.path)
    try:
        _verify(source.staging, shard)
    except IntegrityError:
        source.fetch(shard.path, force=True)
        try:
            _verify(source.staging, shard)
        except IntegrityError:
            # A later pull must not take the damaged file for a finished one.
            (source.staging / shard.path).unlink(missing_ok=True)
            raise


def _verify(folder: Path, shard: ShardRecord) -> None:
    for _ in verify_shard_steps(folder, shard):
        pass


def _is_intact(out: Path, progress: Progress | None) -> bool:
    """Return whether the model is installed and undamaged; refuse a folder that holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MLC_CONFIG).is_file():
        raise ConfigError(f"{out} exists and holds no model; choose another folder")
    try:
        load_config(out)
        verify_model(out, progress)
    except (ModelInvalid, ModelNotFound):
        return False
    return True


def _check_disk(staging: Path, manifest: Manifest) -> None:
    """Refuse to start what cannot be finished."""
    present = sum(
        (staging / shard.path).stat().st_size for shard in manifest.shards if (staging / shard.path).is_file()
    )
    needed = max(0, manifest.total_bytes - present) + SPARE_DISK_BYTES
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise ConfigError(
            f"{staging.parent} has {free / 1e9:.2f} GB free; the download needs {needed / 1e9:.2f} GB; "
            "free some space or set EDGEPHI_MODELS to another disk"
        )


def _keep_only(folder: Path, files: set[str]) -> None:
    """Remove the download's bookkeeping and whatever an earlier attempt left, before installing."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()


def _token(endpoint: str | None) -> bool | None:
    """Return huggingface_hub's token setting: the saved one for its own hub, none for any other."""
    return None if endpoint is None else False


@contextlib.contextmanager
def _hub_errors(repository: str, endpoint: str | None) -> Iterator[None]:
    """Turn whatever a transfer raises into ModelNotFound with the repository, the hub and the remedy."""
    try:
        yield
    except EdgephiError:
        raise
    except Exception as error:
        where = endpoint or "the Hugging Face hub"
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFound(
            f"{repository} could not be fetched from {where}: {detail}; check the name and the network, "
            "then pull again: it resumes"
        ) from error


@contextlib.contextmanager
def _exclusive(staging: Path) -> Iterator[None]:
    """Hold the staging folder, so that two pulls of one model do not write into it at once."""
    import filelock  # comes with huggingface_hub

    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{staging.parent} cannot be written ({error.strerror}); choose another folder") from error
    lock = filelock.FileLock(staging.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(f"another pull into {staging.parent} is running; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _quiet(hub: ModuleType) -> Iterator[None]:
    """Silence huggingface_hub's own progress bars, which would mix with the caller's."""
    was_disabled = hub.utils.are_progress_bars_disabled()
    if not was_disabled:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            hub.utils.enable_progress_bars()


def _import_hub() -> ModuleType:
    """Import huggingface_hub, which not every device needs."""
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError:
        raise ConfigError("pulling a model needs huggingface_hub; run: pip install edgephi[hub]") from None
    return huggingface_hub
