"""
What one model can do on a device: which contexts fit and are fast enough, and the plan made of one of them.

Owns the arithmetic of a single choice; edgephi.profile.planning.solver chooses among several. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgephi.profile.model_facts import ModelFacts
from edgephi.profile.plan import PROMPT_TOKENS, BindingLimit, KvDtype, Plan, PlanKind, PlanMemory, PredictedSpeed
from edgephi.profile.planning.estimates import StepTimesFor
from edgephi.profile.planning.memory import num_pages, plan_memory
from edgephi.profile.planning.plan_device import PlanDevice
from edgephi.profile.planning.plan_request import MAX_BATCH, MIN_CONTEXT, SPEED_CONTEXT, PlanRequest, Prefer
from edgephi.profile.speed import StepTimes

# Prompt chunks are tried in steps of the least one.
MIN_CHUNK = 16
MAX_CHUNK = 256
# A step of prefill alone, so a cancel and another request's first token wait no longer than this.
MAX_CHUNK_S = 0.5
# Where the floor cannot be kept, a prompt may still stretch a running stream's steps by this much.
MIXED_STRETCH = 1.25


class Option:
    """One model in one quantization on a device. Lives for one search."""

    def __init__(self, model: ModelFacts, device: PlanDevice, times: StepTimesFor, request: PlanRequest) -> None:
        self.model = model
        self.request = request
        self.device = device
        wanted = request.kv_dtype
        self.kv_dtype = wanted if wanted is not None else KvDtype.INT8
        self._is_known_kv_dtype = self.kv_dtype in model.kv_bytes_per_token
        if not self._is_known_kv_dtype:
            self.kv_dtype = next(iter(model.kv_bytes_per_token))
        self.times: StepTimes = times(model, self.kv_dtype)
        self._kv_bytes = model.kv_bytes_per_token[self.kv_dtype]

    @property
    def least_context(self) -> int:
        """Context of the smallest plan there is."""
        wanted = self.request.context_tokens
        return min(MIN_CONTEXT if wanted is None else wanted, self.model.context_tokens)

    @property
    def least_batch(self) -> int:
        """Streams of the smallest plan there is."""
        return self.request.batch or 1

    @property
    def least_chunk(self) -> int:
        """Prefill chunk of the smallest plan there is."""
        wanted = self.request.prefill_chunk_tokens
        return min(MIN_CHUNK if wanted is None else wanted, self.model.max_batch_tokens)

    @property
    def batches(self) -> Sequence[int]:
        """Numbers of streams to try; none where the request cannot be met whatever the device."""
        if self.impossible() is not None:
            return ()
        if self.request.batch is not None:
            return (self.request.batch,)
        return range(1, 2 if self.request.prefer is Prefer.SPEED else min(MAX_BATCH, self.model.max_batch_tokens) + 1)

    def impossible(self) -> str | None:
        """Return what the request asks for that no device could give with this model, or None."""
        model, request = self.model, self.request
        for name, value, limit in (
            ("context of", request.context_tokens, model.context_tokens),
            ("batch of", request.batch, model.max_batch_tokens),
            ("prefill chunk of", request.prefill_chunk_tokens, model.max_batch_tokens),
        ):
            if value is not None and value > limit:
                return f"a {name} {value} was asked for; {model.name} has at most {limit}"
        if not self._is_known_kv_dtype:
            known = ", ".join(kind.value for kind in model.kv_bytes_per_token)
            wanted = None if request.kv_dtype is None else request.kv_dtype.value
            return f"{wanted or 'int8'} keys and values were asked for; {model.name} has {known}"
        return None

    def memory(self, batch: int, context: int, chunk: int) -> PlanMemory:
        """Predict the memory of so many streams."""
        return plan_memory(
            self.model,
            kv_dtype=self.kv_dtype,
            batch=batch,
            context_tokens=context,
            chunk_tokens=chunk,
            budget_bytes=self.device.memory_budget_bytes,
            reserve_bytes=self.request.reserve_bytes,
            max_draft_tokens=self.request.max_draft_tokens,
        )

    def fits(self, batch: int, context: int, chunk: int | None = None) -> bool:
        """Whether memory stays in its budget."""
        memory = self.memory(batch, context, self.least_chunk if chunk is None else chunk)
        return memory.total_bytes <= self.device.memory_budget_bytes

    def each_tokens_per_s(self, batch: int, context: int) -> float:
        """Predict the speed of each of *batch* streams that decode behind *context* tokens."""
        return self.times.decode_tokens_per_s(batch=batch, context_tokens=context, kv_bytes_per_token=self._kv_bytes)

    def keeps_floor(self, batch: int, context: int) -> bool:
        """Whether each of them reaches the floor."""
        return self.each_tokens_per_s(batch, context) >= self.request.floor_tokens_per_s

    def most_context(self, batch: int) -> int | None:
        """Return the longest context that *batch* streams can have, the one asked for if there is one; or None."""

        def is_good(context: int) -> bool:
            return self.fits(batch, context) and self.keeps_floor(batch, context)

        if not is_good(self.least_context):
            return None
        if self.request.context_tokens is not None:
            return self.least_context
        if is_good(self.model.context_tokens):
            return self.model.context_tokens
        page = self.model.page_tokens
        # Memory and time grow with the context, so all below a good one are good.
        pages = _largest(
            lambda count: is_good(count * page), self.least_context // page, self.model.context_tokens // page
        )
        return max(pages * page, self.least_context)

    def next_limit(self, batch: int, context: int) -> BindingLimit:
        """Return what stops the next larger plan than a feasible one."""
        request, model = self.request, self.model
        is_longest = context == model.context_tokens
        longer = None
        if request.context_tokens is None and not is_longest:
            longer = min((context // model.page_tokens + 1) * model.page_tokens, model.context_tokens)
        can_grow = request.batch is None and batch < min(MAX_BATCH, model.max_batch_tokens)
        if request.prefer is Prefer.SPEED:
            if longer is None or context >= SPEED_CONTEXT:
                return BindingLimit.MODEL if is_longest and request.context_tokens is None else BindingLimit.OPERATOR
            return self._limit_at(batch, longer)
        if request.prefer is Prefer.CONTEXT and longer is not None:
            return self._limit_at(self.least_batch, longer)
        if can_grow:
            return self._limit_at(batch + 1, context if request.prefer is Prefer.CONTEXT else self.least_context)
        if longer is not None:
            return self._limit_at(batch, longer)
        is_fixed = request.batch is not None or (request.context_tokens is not None and not is_longest)
        return BindingLimit.OPERATOR if is_fixed else BindingLimit.MODEL

    def _limit_at(self, batch: int, context: int) -> BindingLimit:
        return BindingLimit.SPEED if self.fits(batch, context) else BindingLimit.MEMORY

    def plan(self, batch: int, context: int, limit: BindingLimit, *, missing: str | None) -> Plan:
        """Fill in everything else of a plan for *batch* streams of *context* tokens."""
        chunk = self._chunk(batch, context)
        mixed = self._mixed_chunk(batch, context, chunk)
        floor = self.request.floor_tokens_per_s
        each_full = self.each_tokens_per_s(batch, context)
        return Plan(
            context_tokens=context,
            max_running=batch,
            prefill_chunk_tokens=chunk,
            mixed_chunk_tokens=mixed,
            default_max_tokens=context,
            page_tokens=self.model.page_tokens,
            num_pages=num_pages(self.model, batch=batch, context_tokens=context),
            kind=self.device.kind,
            kv_dtype=self.kv_dtype,
            num_threads=self.device.num_threads,
            cpus=self.device.cpus,
            floor_tokens_per_s=floor,
            predicted=self._predicted(batch, context, chunk, mixed),
            meets_floor=each_full >= floor,
            memory=self.memory(batch, context, chunk),
            binding_limit=limit,
            feasible=missing is None,
            missing=missing,
            device=self.device.name,
            model=self.model.name,
            quantization=self.model.quantization,
            notes=self._notes(batch, context, mixed),
        )

    def _chunk(self, batch: int, context: int) -> int:
        """Return the largest prefill chunk that fits beside the rest and takes no longer than a cancel may wait."""
        if self.request.prefill_chunk_tokens is not None:
            return self.least_chunk

        def is_good(chunk: int) -> bool:
            seconds = self.times.mixed_step_s(
                batch=0, chunk_tokens=chunk, context_tokens=context, kv_bytes_per_token=self._kv_bytes
            )
            return seconds <= MAX_CHUNK_S and self.fits(batch, context, chunk)

        most = min(MAX_CHUNK, self.model.max_batch_tokens) // MIN_CHUNK
        return MIN_CHUNK * _largest(lambda count: is_good(count * MIN_CHUNK), 1, most) if most else self.least_chunk

    def _mixed_chunk(self, batch: int, context: int, chunk: int) -> int:
        """Return the largest chunk beside which the other streams keep the floor, at least 1."""
        if batch == 1:
            return chunk
        decode_s = 1 / self.each_tokens_per_s(batch - 1, context)
        floor = self.request.floor_tokens_per_s
        longest_s = float("inf") if floor == 0 else 1 / floor
        if not self.keeps_floor(batch, context):
            longest_s = MIXED_STRETCH * decode_s
        return _largest(
            lambda count: self._mixed_step_s(batch, context, count) <= longest_s,
            1,
            max(1, min(chunk, self.model.max_batch_tokens - batch + 1)),
        )

    def _mixed_step_s(self, batch: int, context: int, chunk: int) -> float:
        return self.times.mixed_step_s(
            batch=batch - 1, chunk_tokens=chunk, context_tokens=context, kv_bytes_per_token=self._kv_bytes
        )

    def _predicted(self, batch: int, context: int, chunk: int, mixed: int) -> PredictedSpeed:
        prompt = min(PROMPT_TOKENS, context)
        first_token_s = self.times.prefill_s(prompt_tokens=prompt, chunk_tokens=chunk)
        bandwidth = self.times.bandwidth_bytes_per_s
        return PredictedSpeed(
            decode_empty_tokens_per_s=self.each_tokens_per_s(1, 0),
            decode_full_tokens_per_s=self.each_tokens_per_s(1, context),
            prefill_tokens_per_s=prompt / first_token_s,
            bandwidth_gbps=None if bandwidth is None else bandwidth / 1e9,
            time_to_first_token_s=first_token_s,
            each_empty_tokens_per_s=self.each_tokens_per_s(batch, 0),
            each_full_tokens_per_s=self.each_tokens_per_s(batch, context),
            each_mixed_tokens_per_s=None if batch == 1 else 1 / self._mixed_step_s(batch, context, mixed),
        )

    def _notes(self, batch: int, context: int, mixed: int) -> tuple[str, ...]:
        notes = []
        if self.device.kind is PlanKind.CATALOGUE:
            notes.append(
                "speeds are estimated from known figures of the device; `edgephi calibrate` on it measures them"
            )
        floor = self.request.floor_tokens_per_s
        if batch > 1:
            speed = 1 / self._mixed_step_s(batch, context, mixed)
            if speed < floor:
                notes.append(
                    f"while a prompt is computed beside full contexts, running streams get {speed:.1f} tok/s, below "
                    f"the floor of {floor:g}"
                )
        return tuple(notes)


def _largest(is_good: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest of *low* to *high* that is good; *low* is taken to be, and all below a good one are."""
    while low < high:
        middle = (low + high + 1) // 2
        if is_good(middle):
            low = middle
        else:
            high = middle - 1
    return low
