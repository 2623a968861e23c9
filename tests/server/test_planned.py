"""A server with a plan that was made: what it tells of the plan, of its governor and of predictions."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import MutableMapping
from typing import Any

import grpc
import structlog

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.request import EngineRequest, RequestId, SamplingParams
from edgephi.profile.machine.probe import LiveFacts
from edgephi.profile.plan import BindingLimit, PlanKind, PlanMemory, PredictedSpeed, Remedy
from edgephi.profile.speed import StepTimes
from edgephi.profile.verification import ExpectedSpeed, Verifier
from edgephi.runtime.fake import FakeBackend
from edgephi.server.verification import VerificationTask
from edgephi.v1 import device_pb2, device_service_pb2
from edgephi.v1.device_service_pb2_grpc import DeviceServiceStub

MIB = 1 << 20
MEMORY = PlanMemory(
    weights_bytes=20 * MIB,
    kv_bytes=10 * MIB,
    workspace_bytes=5 * MIB,
    process_bytes=65 * MIB,
    reserve_bytes=10 * MIB,
    budget_bytes=200 * MIB,
)
PLANNED = {
    "kind": PlanKind.CALIBRATED,
    "floor_tokens_per_s": 12.0,
    "predicted": PredictedSpeed(each_empty_tokens_per_s=20.0, each_full_tokens_per_s=13.0, time_to_first_token_s=2.5),
    "meets_floor": True,
    "feasible": True,
    "memory": MEMORY,
    "binding_limit": BindingLimit.OPERATOR,
    "remedies": (Remedy(change="a smaller batch", effect="context 512 -> 1024 tokens"),),
    "device": "raspberry-pi-5-8gb",
    "quantization": "q4f16_1",
    "notes": ("measured yesterday",),
}
EXPECTED = ExpectedSpeed(
    times=StepTimes(threads=1, rows=((1, 0.05),), kv_s_per_byte=0.0, prefill_s_per_pair=0.0), kv_bytes_per_token=64
)

LIVE = LiveFacts(resident_bytes=None, available_bytes=None, zones=(), peak_resident_bytes=None)


async def test_the_plan_is_told_as_it_was_made(serve: Any) -> None:
    """GetPlan carries predictions, memory by item, the binding limit, remedies and notes."""
    async with serve(planned=PLANNED) as running, grpc.aio.insecure_channel(running.target) as channel:
        plan = (await DeviceServiceStub(channel).GetPlan(device_service_pb2.GetPlanRequest())).plan
    assert plan.kind == device_pb2.PLAN_KIND_CALIBRATED
    assert (plan.device, plan.quantization, plan.is_feasible, plan.meets_floor) == (
        "raspberry-pi-5-8gb", "q4f16_1", True, True,
    )  # fmt: skip
    assert (plan.predicted.each_empty_tokens_per_second, plan.predicted.each_full_tokens_per_second) == (20.0, 13.0)
    assert plan.predicted.time_to_first_token_seconds == 2.5
    assert plan.memory.peak_bytes == 100 * MIB
    assert plan.memory.budget_bytes == 200 * MIB
    assert plan.binding_limit == device_pb2.BINDING_LIMIT_OPERATOR
    assert [remedy.description for remedy in plan.remedies] == ["a smaller batch: context 512 -> 1024 tokens"]
    assert list(plan.notes) == ["measured yesterday"]
    assert not plan.HasField("missing")


async def test_the_live_state_tells_limits_and_memory_beside_the_prediction(serve: Any) -> None:
    """WatchState carries what the governor allows at present and the memory predicted and measured; so do metrics."""
    async with (
        serve(planned=PLANNED, expected=EXPECTED, metrics_port=0) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        async with asyncio.timeout(10):
            while True:
                states = DeviceServiceStub(channel).WatchState(device_service_pb2.WatchStateRequest())
                state = (await anext(aiter(states))).state
                states.cancel()
                if state.verification.HasField("predicted_peak_bytes"):
                    break
                await asyncio.sleep(0.05)
        url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    governor = state.governor
    assert (governor.speed_level, governor.memory_level, governor.is_floor_missed) == (0, 0, False)
    assert (governor.max_running, governor.max_request_tokens, governor.keeps_cached_pages) == (4, 512, True)
    assert list(governor.events) == []
    # Nothing but the warm-up was computed, so nearly all pages are untouched.
    assert 90 * MIB <= state.verification.predicted_peak_bytes < 91 * MIB
    assert 10 * MIB < state.verification.measured_peak_bytes <= state.peak_resident_bytes
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    model = '{model_name="tiny-phi3"}'
    assert float(values[f"edgephi_plan_floor_tokens_per_second{model}"]) == 12
    assert float(values[f"edgephi_plan_full_tokens_per_second{model}"]) == 13
    assert float(values[f"edgephi_governor_speed_level{model}"]) == 0
    assert float(values[f"edgephi_memory_peak_bytes{model}"]) > 10 * MIB


async def test_a_static_plan_is_neither_governed_nor_verified(serve: Any) -> None:
    """Without a plan that was made nothing is limited and nothing was predicted, and the state says neither."""
    async with serve() as running, grpc.aio.insecure_channel(running.target) as channel:
        states = DeviceServiceStub(channel).WatchState(device_service_pb2.WatchStateRequest())
        state = (await anext(aiter(states))).state
        states.cancel()
    assert not state.HasField("governor")
    assert not state.HasField("verification")


def test_a_wrong_prediction_is_told_once_until_it_is_right_again() -> None:
    """Answers at half the predicted speed warn once with both figures, and again after they were fast in between."""
    now, step_s = 0.0, 0.1

    class TimedBackend(FakeBackend):
        def forward(self, batch: Any) -> Any:
            nonlocal now
            now += step_s
            return super().forward(batch)

    backend = TimedBackend(vocab_size=50, num_pages=64, max_context_tokens=1024)
    engine = Engine(backend, EngineConfig(max_running=1), clock=lambda: now)
    lines = structlog.testing.LogCapture()
    task = VerificationTask(
        Verifier(MEMORY, EXPECTED),
        engine.stats,
        lambda: LIVE,
        page_tokens=16,
        log=structlog.wrap_logger(structlog.PrintLogger(), processors=[lines]),
    )
    sampling = SamplingParams(temperature=0.0)
    engine.submit(EngineRequest(request_id=RequestId("a"), prompt=(1,), max_tokens=900, sampling=sampling))
    engine.step()

    def run(steps: int) -> list[MutableMapping[str, Any]]:
        for _ in range(steps):
            engine.step()
        task.tick(LIVE)
        return [line for line in lines.entries if line["event"] == "plan.prediction_missed"]

    run(1)
    (warned,) = run(60)
    assert (warned["what"], warned["measured_to_predicted"]) == ("speed", 0.5)
    assert (warned["predicted_tokens_per_s"], warned["measured_tokens_per_s"]) == (20.0, 10.0)
    assert len(run(60)) == 1
    step_s = 0.05
    assert len(run(120)) == 1
    step_s = 0.1
    assert len(run(60)) == 2
