from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgephi.cli.compose import EngineKind, ServiceOptions, model_id, open_service, resolve_model
from edgephi.errors import ConfigError, EngineFailed, ModelInvalid, ModelNotFound, NotReady
from edgephi.generation.request import GenerationRequest
from edgephi.server.model_info import ModelInfo


@given(st.text())
def test_every_name_has_a_form_the_contract_allows(name: str) -> None:
    """Whatever a folder is called, the model's id is one that ModelInfo accepts."""
    info = ModelInfo(
        model_id=model_id(name), display_name="x", architecture="phi3", quantization="none", context_tokens=1
    )
    assert info.name == f"models/{model_id(name)}"


def test_close_stops_the_engine_before_the_backend(tiny: Path) -> None:
    """After close the engine's thread is gone and requests are refused; closing again does nothing."""
    service = open_service(ServiceOptions(model=str(tiny), engine=EngineKind.FAKE))
    prompt = service.generator.completion_prompt("hi")
    service.close()
    service.close()
    assert not service.loop.is_alive
    with pytest.raises(NotReady):
        list(service.generator.stream(GenerationRequest(request_id="late", prompt=prompt)))


def test_stuck_engine_keeps_its_backend(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the engine cannot be stopped, its backend is not taken from under the forward that still runs."""
    service = open_service(ServiceOptions(model=str(tiny), engine=EngineKind.FAKE))
    closed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(service._backend, "close", lambda: closed.append("backend"))

        def stuck() -> None:
            raise EngineFailed("a forward is stuck")

        patch.setattr(service.loop, "close", stuck)
        with pytest.raises(EngineFailed):
            service.close()
        assert closed == []
    service.close()


def test_plan_and_info_say_what_was_loaded(tiny: Path) -> None:
    """Plan and description carry the sizes that were asked for and those of the model's files."""
    options = ServiceOptions(model=str(tiny), engine=EngineKind.FAKE, kv_tokens=100, max_running=2)
    with open_service(options) as service:
        assert service.kv_tokens == 112  # whole pages
        assert service.plan.max_running == 2
        assert service.info.context_tokens == service.plan.context_tokens == 112
        assert service.info.max_context_tokens == 256
        assert service.info.size_bytes == sum(file.stat().st_size for file in tiny.glob("params_shard_*"))


def test_defaults_are_the_models_own(tiny: Path, tmp_path: Path) -> None:
    """Sampling defaults come from the model's configuration; values no request could use are refused."""
    config = _copy_with(tiny, tmp_path / "cold", temperature=0.0)
    with open_service(ServiceOptions(model=str(config), engine=EngineKind.FAKE)) as service:
        assert service.generator.defaults.temperature == 0.0
    hot = _copy_with(tiny, tmp_path / "hot", temperature=7.5)
    with pytest.raises(ModelInvalid, match=r"temperature.*7\.5"):
        open_service(ServiceOptions(model=str(hot), engine=EngineKind.FAKE))


def test_default_answer_length_is_a_fair_share(tiny: Path) -> None:
    """A request that names no limit gets its share of the pages, or what the operator set; never beyond the context."""

    def default(**options: Any) -> int:
        chosen = ServiceOptions(model=str(tiny), engine=EngineKind.FAKE, **options)
        with open_service(chosen) as service:
            return service.plan.default_max_tokens

    assert default(kv_tokens=256, max_running=4) == 64
    assert default(kv_tokens=4096, max_running=1) == 256
    assert default(default_max_tokens=10) == 10
    with pytest.raises(ConfigError, match="default_max_tokens is 0"):
        default(default_max_tokens=0)


def test_failed_start_leaves_nothing_running(tiny: Path, tmp_path: Path) -> None:
    """When the last part of a start fails, no engine thread is left."""
    broken = shutil.copytree(tiny, tmp_path / "broken", ignore=shutil.ignore_patterns("build", "tensor-cache.json"))
    with pytest.raises(ModelNotFound):
        open_service(ServiceOptions(model=str(broken), engine=EngineKind.FAKE))
    assert "edgephi-engine" not in {thread.name for thread in threading.enumerate()}


def test_bad_options_are_refused(tiny: Path) -> None:
    """An engine option out of bounds is refused before a model is loaded."""
    with pytest.raises(ConfigError, match="max_running is 0"):
        open_service(ServiceOptions(model=str(tiny), engine=EngineKind.FAKE, max_running=0))


def test_models_are_found_by_name_path_and_pocket(tiny: Path, tmp_path: Path) -> None:
    """A folder, an installed name and "pocket" name models; anything else lists what is installed."""
    assert resolve_model(str(tiny)).name == "tiny"
    shutil.copytree(tiny, tmp_path / "models" / "mine", ignore=shutil.ignore_patterns("build"))
    assert resolve_model("mine").path == tmp_path / "models" / "mine"
    assert resolve_model("pocket") == resolve_model("edgephi-pocket")
    with pytest.raises(ModelNotFound, match="installed: mine"):
        resolve_model("nosuch")


def _copy_with(model: Path, out: Path, **values: float) -> Path:
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("build"))
    file = out / "mlc-chat-config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return out
