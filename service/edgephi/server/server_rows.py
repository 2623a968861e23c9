"""
Metrics of one server: its engine, the plan in force, what the governor allows, and predictions beside measurements.

Owns their names. Each is read from what already watches it; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgephi.engine.health import EngineHealth, EngineState
from edgephi.engine.stats import EngineStats
from edgephi.profile.machine.process import ProcessMemory
from edgephi.profile.plan import Plan, PredictedSpeed
from edgephi.profile.verification import Finding
from edgephi.server.governor import GovernorState
from edgephi.server.metric_table import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """Counters and condition of an engine at one moment."""

    stats: EngineStats
    health: EngineHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernedReading:
    """What holds a plan to its promise, at one moment."""

    governor: GovernorState
    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReading:
    """
    The server itself at one moment.

    Attributes:
        is_ready: Whether requests are taken.
        num_answers: Answers being given.
        certificate_expiry_s: When the first certificate in force expires, in seconds since 1970; None without TLS.
        processes: Memory by process: ``front``, which holds the connections, and ``engine`` where it has its own.
    """

    is_ready: bool
    num_answers: int
    certificate_expiry_s: float | None
    processes: Mapping[str, ProcessMemory]


def _predicted(plan: Plan) -> PredictedSpeed:
    return plan.predicted or PredictedSpeed()


ENGINE_ROWS: tuple[Row[EngineReading], ...] = (
    Row("requests_running", "Requests being computed.", lambda now: now.stats.running),
    Row("requests_waiting", "Requests that wait for room.", lambda now: now.stats.waiting),
    Row(
        "kv_cache_usage_ratio",
        "Part of the key and value pages in use, 0 to 1.",
        lambda now: now.stats.pages_used / now.stats.pages_total,
    ),
    Row(
        "kv_cache_kept_ratio",
        "Part of the pages kept for prompts that begin alike.",
        lambda now: now.stats.pages_cached / now.stats.pages_total,
    ),
    Row("context_tokens", "Tokens that running requests have in pages.", lambda now: now.stats.context_tokens),
    Row("engine_steps", "Forwards begun.", lambda now: now.stats.steps_total, is_counter=True),
    Row(
        "engine_prefilled_tokens",
        "Prompt tokens computed, as they are computed.",
        lambda now: now.stats.tokens_prefilled_total,
        is_counter=True,
    ),
    Row(
        "engine_generated_tokens",
        "Tokens drawn, as they are drawn.",
        lambda now: now.stats.tokens_generated_total,
        is_counter=True,
    ),
    Row(
        "engine_drafted_tokens",
        "Guessed tokens computed beside others.",
        lambda now: now.stats.drafted_tokens_total,
        is_counter=True,
    ),
    Row(
        "engine_accepted_tokens",
        "Guessed tokens that were right.",
        lambda now: now.stats.accepted_tokens_total,
        is_counter=True,
    ),
    Row(
        "engine_decode_tokens",
        "Tokens drawn after the first one of their request.",
        lambda now: now.stats.decode_tokens_total,
        is_counter=True,
    ),
    Row(
        "engine_decode_stream_seconds",
        "Time that requests spent drawing these, all added up; divides them to the speed of one stream.",
        lambda now: now.stats.decode_stream_s_total,
        is_counter=True,
    ),
    Row("engine_up", "1 while the engine takes requests.", lambda now: now.health.state is EngineState.RUNNING),
    Row(
        "engine_starts",
        "Times the engine was started, the first included.",
        lambda now: now.health.starts_total,
        is_counter=True,
    ),
    Row(
        "engine_deaths",
        "Times the engine ended without being asked to.",
        lambda now: now.health.deaths_total,
        is_counter=True,
    ),
    Row(
        "requests_quarantined",
        "Requests refused because they had ended the engine more than once.",
        lambda now: now.health.quarantined_total,
        is_counter=True,
    ),
)

PLAN_ROWS: tuple[Row[Plan], ...] = (
    Row("plan_context_tokens", "Most tokens of a request.", lambda plan: plan.context_tokens),
    Row("plan_max_running", "Most requests at once.", lambda plan: plan.max_running),
    Row("plan_floor_tokens_per_second", "Least speed of an answer.", lambda plan: plan.floor_tokens_per_s),
    Row(
        "plan_empty_tokens_per_second",
        "Predicted speed of each answer with empty contexts.",
        lambda plan: _predicted(plan).each_empty_tokens_per_s,
    ),
    Row(
        "plan_full_tokens_per_second",
        "Predicted speed of each answer with full contexts.",
        lambda plan: _predicted(plan).each_full_tokens_per_s,
    ),
    Row(
        "plan_time_to_first_token_seconds",
        "Predicted time to the first token of 512 prompt tokens, alone.",
        lambda plan: _predicted(plan).time_to_first_token_s,
    ),
    Row(
        "plan_memory_peak_bytes",
        "Most memory expected in RAM.",
        lambda plan: None if plan.memory.process_bytes is None else plan.memory.peak_bytes,
    ),
    Row("plan_memory_budget_bytes", "What the server may use.", lambda plan: plan.memory.budget_bytes),
)

GOVERNED_ROWS: tuple[Row[GovernedReading], ...] = (
    Row("governor_speed_level", "Steps below the plan for speed.", lambda now: now.governor.level.speed),
    Row("governor_memory_level", "Steps below the plan for memory.", lambda now: now.governor.level.memory),
    Row("governor_floor_missed", "1 if the floor cannot be held.", lambda now: now.governor.is_floor_missed),
    Row("governor_max_running", "Most requests at once at present.", lambda now: now.governor.limits.max_running),
    Row(
        "governor_max_request_tokens",
        "Most tokens of a new request at present.",
        lambda now: now.governor.limits.max_request_tokens,
    ),
    Row(
        "stream_tokens_per_second",
        "Speed of one answer, the mean of the last second.",
        lambda now: now.governor.stream_tokens_per_s,
    ),
    Row(
        "stream_predicted_tokens_per_second",
        "Speed of one answer expected for the load that was measured.",
        lambda now: now.finding.predicted_stream_tokens_per_s,
    ),
    Row(
        "stream_measured_tokens_per_second",
        "Speed of one answer while answers were decoded and nothing else.",
        lambda now: now.finding.measured_stream_tokens_per_s,
    ),
    Row(
        "memory_peak_predicted_bytes",
        "Memory expected with the pages used so far.",
        lambda now: now.finding.predicted_peak_bytes,
    ),
    Row("memory_peak_bytes", "Most memory that was in RAM.", lambda now: now.finding.measured_peak_bytes),
)

SERVER_ROWS: tuple[Row[ServerReading], ...] = (
    Row("server_ready", "1 while requests are taken.", lambda now: now.is_ready),
    Row("server_answers", "Answers being given.", lambda now: now.num_answers),
    Row(
        "tls_certificate_expiry_timestamp_seconds",
        "When the first certificate in force expires, since 1970.",
        lambda now: now.certificate_expiry_s,
    ),
    Row(
        "process_resident_bytes",
        "Memory in RAM, by process: front holds the connections, engine computes.",
        lambda now: {(name,): memory.resident_bytes for name, memory in now.processes.items()},
        ("process",),
    ),
    Row(
        "process_peak_bytes",
        "Most memory that ever was in RAM, by process.",
        lambda now: {(name,): memory.peak_bytes for name, memory in now.processes.items()},
        ("process",),
    ),
)
