"""
Descriptions of the model, the machine, the plan and the live state, as protobuf.

Owns only the mapping: None stays absent, so that nothing unknown is reported as zero.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from edgephi.engine.request import SamplingParams
from edgephi.engine.stats import EngineStats
from edgephi.profile.machine.probe import DeviceFacts, LiveFacts
from edgephi.profile.plan import BindingLimit, KvDtype, Plan, PlanKind, PredictedSpeed
from edgephi.profile.verification import Finding
from edgephi.server.governor import GovernorState
from edgephi.server.lifecycle import ServerState
from edgephi.server.model_info import ModelInfo
from edgephi.v1 import device_pb2, model_service_pb2, sampling_pb2

_STATES: Mapping[ServerState, model_service_pb2.ModelState.ValueType] = MappingProxyType(
    {
        ServerState.LOADING: model_service_pb2.MODEL_STATE_LOADING,
        ServerState.READY: model_service_pb2.MODEL_STATE_READY,
        ServerState.DRAINING: model_service_pb2.MODEL_STATE_DRAINING,
        ServerState.FAILED: model_service_pb2.MODEL_STATE_FAILED,
    }
)
_KINDS: Mapping[PlanKind, device_pb2.PlanKind.ValueType] = MappingProxyType(
    {
        PlanKind.STATIC: device_pb2.PLAN_KIND_STATIC,
        PlanKind.CATALOGUE: device_pb2.PLAN_KIND_CATALOGUE,
        PlanKind.CALIBRATED: device_pb2.PLAN_KIND_CALIBRATED,
    }
)
_KV_DTYPES: Mapping[KvDtype | None, device_pb2.KvDtype.ValueType] = MappingProxyType(
    {
        None: device_pb2.KV_DTYPE_UNSPECIFIED,
        KvDtype.INT8: device_pb2.KV_DTYPE_INT8,
        KvDtype.FLOAT16: device_pb2.KV_DTYPE_FLOAT16,
        KvDtype.FLOAT32: device_pb2.KV_DTYPE_FLOAT32,
    }
)
_LIMITS: Mapping[BindingLimit | None, device_pb2.BindingLimit.ValueType] = MappingProxyType(
    {
        None: device_pb2.BINDING_LIMIT_UNSPECIFIED,
        BindingLimit.MEMORY: device_pb2.BINDING_LIMIT_MEMORY,
        BindingLimit.SPEED: device_pb2.BINDING_LIMIT_SPEED,
        BindingLimit.MODEL: device_pb2.BINDING_LIMIT_MODEL,
        BindingLimit.OPERATOR: device_pb2.BINDING_LIMIT_OPERATOR,
    }
)


def model_message(model: ModelInfo, state: ServerState, defaults: SamplingParams) -> model_service_pb2.Model:
    """Describe the served model."""
    return model_service_pb2.Model(
        name=model.name,
        display_name=model.display_name,
        architecture=model.architecture,
        quantization=model.quantization,
        num_parameters=model.num_parameters,
        context_tokens=model.context_tokens,
        max_context_tokens=model.max_context_tokens,
        sliding_window_tokens=model.sliding_window_tokens,
        vocab_size=model.vocab_size,
        size_bytes=model.size_bytes,
        digest=model.digest,
        state=_STATES[state],
        default_sampling=sampling_pb2.SamplingParams(
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
            presence_penalty=defaults.presence_penalty,
            frequency_penalty=defaults.frequency_penalty,
            seed=defaults.seed,
        ),
    )


def device_message(facts: DeviceFacts, *, server_version: str) -> device_pb2.Device:
    """Describe the machine."""
    cpu = facts.cpu
    clusters = (
        device_pb2.CoreCluster(cpus=cluster.cpus, max_mhz=cluster.max_mhz, core=cluster.core, governor=cluster.governor)
        for cluster in cpu.clusters
    )
    return device_pb2.Device(
        board=facts.board,
        cpu=device_pb2.Cpu(
            model=cpu.model,
            arch=cpu.arch,
            features=sorted(cpu.features),
            isa_level=cpu.isa_level,
            clusters=clusters,
        ),
        memory=device_pb2.Memory(total_bytes=facts.memory.total_bytes, available_bytes=facts.memory.available_bytes),
        limits=device_pb2.Limits(
            memory_bytes=facts.limits.memory_bytes,
            cpu_cores=facts.limits.cpu_cores,
            allowed_cpus=facts.limits.allowed_cpus,
        ),
        os=device_pb2.OperatingSystem(name=facts.os.name, kernel=facts.os.kernel),
        server_version=server_version,
    )


def plan_message(plan: Plan) -> device_pb2.Plan:
    """Describe the plan in force."""
    memory = plan.memory
    return device_pb2.Plan(
        kind=_KINDS[plan.kind],
        context_tokens=plan.context_tokens,
        max_running=plan.max_running,
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        mixed_chunk_tokens=plan.mixed_chunk_tokens,
        default_max_tokens=plan.default_max_tokens,
        kv_dtype=_KV_DTYPES[plan.kv_dtype],
        page_tokens=plan.page_tokens,
        num_pages=plan.num_pages,
        num_threads=plan.num_threads,
        cpus=plan.cpus,
        floor_tokens_per_second=plan.floor_tokens_per_s,
        predicted=None if plan.predicted is None else _speed_message(plan.predicted),
        meets_floor=plan.meets_floor,
        memory=device_pb2.PlanMemory(
            weights_bytes=memory.weights_bytes,
            kv_bytes=memory.kv_bytes,
            workspace_bytes=memory.workspace_bytes,
            process_bytes=memory.process_bytes,
            reserve_bytes=memory.reserve_bytes,
            budget_bytes=memory.budget_bytes,
            peak_bytes=None if memory.process_bytes is None else memory.peak_bytes,
        ),
        binding_limit=_LIMITS[plan.binding_limit],
        remedies=(
            device_pb2.Remedy(
                description=f"{remedy.change}: {remedy.effect}", decode_tokens_per_second=remedy.decode_tokens_per_s
            )
            for remedy in plan.remedies
        ),
        is_feasible=plan.feasible,
        missing=plan.missing,
        device=plan.device,
        quantization=plan.quantization,
        notes=plan.notes,
    )


def _speed_message(speed: PredictedSpeed) -> device_pb2.PredictedSpeed:
    return device_pb2.PredictedSpeed(
        decode_empty_tokens_per_second=speed.decode_empty_tokens_per_s,
        decode_full_tokens_per_second=speed.decode_full_tokens_per_s,
        prefill_tokens_per_second=speed.prefill_tokens_per_s,
        bandwidth_gbps=speed.bandwidth_gbps,
        each_empty_tokens_per_second=speed.each_empty_tokens_per_s,
        each_full_tokens_per_second=speed.each_full_tokens_per_s,
        time_to_first_token_seconds=speed.time_to_first_token_s,
    )


def state_message(
    stats: EngineStats, live: LiveFacts, *, output_tokens_per_s: float | None, is_ready: bool
) -> device_pb2.LiveState:
    """Describe how the server is doing now."""
    state = device_pb2.LiveState(
        num_running=stats.running,
        num_waiting=stats.waiting,
        num_used_pages=stats.pages_used,
        num_pages=stats.pages_total,
        output_tokens_per_second=output_tokens_per_s,
        resident_bytes=live.resident_bytes,
        peak_resident_bytes=live.peak_resident_bytes,
        available_bytes=live.available_bytes,
        temperatures=(device_pb2.Temperature(zone=zone.name, celsius=zone.celsius) for zone in live.zones),
        is_ready=is_ready,
    )
    state.sample_time.FromNanoseconds(time.time_ns())
    return state


def add_governor(state: device_pb2.LiveState, governor: GovernorState, *, now: float) -> None:
    """Describe what is taken on at present in a live state; *now* is the governor's clock, in seconds."""
    limits = governor.limits
    state.stream_tokens_per_second = governor.stream_tokens_per_s or 0.0
    if governor.stream_tokens_per_s is None:
        state.ClearField("stream_tokens_per_second")
    state.governor.CopyFrom(
        device_pb2.GovernorState(
            speed_level=governor.level.speed,
            memory_level=governor.level.memory,
            max_running=limits.max_running,
            prefill_chunk_tokens=limits.prefill_chunk_tokens,
            mixed_chunk_tokens=limits.mixed_chunk_tokens,
            max_request_tokens=limits.max_request_tokens,
            keeps_cached_pages=limits.keeps_cached_pages,
            is_floor_missed=governor.is_floor_missed,
            events=(
                device_pb2.GovernorEvent(
                    age_seconds=max(0.0, now - event.at_s),
                    reason=event.reason,
                    speed_level=level.speed,
                    memory_level=level.memory,
                )
                for event, level in governor.leveled_events()
            ),
        )
    )


def verification_message(finding: Finding) -> device_pb2.Verification:
    """Describe predictions beside measurements."""
    return device_pb2.Verification(
        predicted_peak_bytes=finding.predicted_peak_bytes,
        measured_peak_bytes=finding.measured_peak_bytes,
        predicted_stream_tokens_per_second=finding.predicted_stream_tokens_per_s,
        measured_stream_tokens_per_second=finding.measured_stream_tokens_per_s,
    )
