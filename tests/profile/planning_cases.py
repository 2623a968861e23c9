"""Facts, durations and devices that the planner's tests share. Phi-3-mini's sizes are those of its packed weights."""

from __future__ import annotations

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import KvDtype, PlanKind
from edgephi.profile.planning.estimates import StepTimesFor
from edgephi.profile.planning.plan_device import PlanDevice
from edgephi.profile.speed import StepTimes

GB = 10**9


def phi3(quantization: str = "q4f16_1", *, context_tokens: int = 4096) -> ModelFacts:
    """Return the facts of Phi-3-mini-4k."""
    weights, step = {
        "q4f16_1": (2_150_043_904, 2_094_630_000),
        "q3f16_g32": (1_697_059_072, 1_641_645_000),
    }[quantization]
    return ModelFacts(
        name="phi3-mini-4k",
        quantization=quantization,
        weights_bytes=weights,
        step_weight_bytes=step,
        kv_bytes_per_token={KvDtype.INT8: 200_704, KvDtype.FLOAT16: 393_216, KvDtype.FLOAT32: 786_432},
        context_tokens=context_tokens,
        page_tokens=16,
        max_batch_tokens=256,
        macs_per_token=3_623_878_656,
        vocab_size=32_064,
        hidden_size=3072,
        intermediate_size=8192,
        num_heads=32,
        head_dim=96,
        num_layers=32,
        window_tokens=2047,
    )


def stream_times(gbps: float, *, products_per_s: float = 4e11) -> StepTimesFor:
    """Return durations of a machine that reads so fast and multiplies so fast."""

    def times(model: ModelFacts, _kv_dtype: KvDtype) -> StepTimes:
        read_s = model.step_weight_bytes / (gbps * 1e9)
        rows = (1, 4, 16, 64, 256)
        return StepTimes(
            threads=2,
            rows=tuple((count, max(read_s, count * model.macs_per_token / products_per_s)) for count in rows),
            kv_s_per_byte=1 / (gbps * 1e9),
            prefill_s_per_pair=1e-6,
            bandwidth_bytes_per_s=gbps * 1e9,
        )

    return times


def device(budget_gb: float = 8.0, **fields: object) -> PlanDevice:
    """Return a device with a memory budget in 10^9 bytes."""
    values: dict[str, object] = {"name": "test board", "num_threads": 2, "kind": PlanKind.CALIBRATED} | fields
    return PlanDevice(memory_budget_bytes=round(budget_gb * GB), **values)  # type: ignore[arg-type] # checked by each test
