"""The memory model: its items, and that it grows with all that takes memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profile.planning_cases import phi3

from edgephi.profile.plan import KvDtype, PlanMemory
from edgephi.profile.planning.memory import MIB, page_bytes, plan_memory, row_bytes, workspace_bytes

Q4 = phi3()


def memory(
    *, context_tokens: int = 1024, batch: int = 1, kv_dtype: KvDtype = KvDtype.INT8, chunk_tokens: int = 64,
    max_draft_tokens: int = 8, reserve_bytes: int | None = None,
) -> PlanMemory:  # fmt: skip
    """Predict for Phi-3-mini."""
    return plan_memory(
        Q4, kv_dtype=kv_dtype, batch=batch, context_tokens=context_tokens, chunk_tokens=chunk_tokens,
        max_draft_tokens=max_draft_tokens, reserve_bytes=reserve_bytes, budget_bytes=4 * 10**9,
    )  # fmt: skip


def test_items_add_up() -> None:
    """The peak is all items but the reserve, the total all of them, and the weights the whole file."""
    found = memory()
    assert found.weights_bytes == Q4.weights_bytes
    assert found.kv_bytes == 1024 * 200_704
    assert found.reserve_bytes is not None
    assert found.total_bytes == found.peak_bytes + found.reserve_bytes
    assert found.reserve_bytes == int(0.03 * found.peak_bytes)
    assert memory(reserve_bytes=5).reserve_bytes == 5


def test_keys_and_values_take_their_true_width_in_whole_pages() -> None:
    """A page more for a token more, for each stream; float16 takes 393,216 bytes a token and int8 200,704."""
    assert memory(context_tokens=1025, batch=3).kv_bytes == 3 * 1040 * 200_704
    assert memory(kv_dtype=KvDtype.FLOAT16).kv_bytes == 1024 * 393_216
    assert page_bytes(Q4, KvDtype.INT8) == 16 * 200_704


def test_a_row_takes_what_the_compiled_graph_reserves() -> None:
    """125,312 bytes: the sum of the storages that TVM's memory planning gives to Phi-3-mini, for each row."""
    # residual, two rotary tables, int8 values, two scales a group, gate and up, queries with keys and values
    assert row_bytes(Q4) == 12_288 + 2 * 192 + 8_192 + 2 * 1_024 + 65_536 + 36_864


def test_guessed_tokens_widen_the_step_and_the_logits() -> None:
    """Eight streams with eight guesses each have 72 rows of logits; without, eight."""
    without = workspace_bytes(Q4, batch=8, chunk_tokens=16, max_draft_tokens=0)
    with_guesses = workspace_bytes(Q4, batch=8, chunk_tokens=16, max_draft_tokens=8)
    logits = 2 * 4 * 32_064
    assert without == 23 * row_bytes(Q4) + (1 + 2 + 4 + 8) * logits
    assert with_guesses == 72 * row_bytes(Q4) + (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128) * logits


@pytest.mark.parametrize(
    ("quantization", "kv_dtype", "context_tokens", "batch", "chunk_tokens", "measured_mib"),
    [
        ("q4f16_1", KvDtype.INT8, 256, 1, 64, 2236),
        ("q4f16_1", KvDtype.FLOAT16, 512, 1, 64, 2379),
        ("q4f16_1", KvDtype.FLOAT32, 512, 2, 64, 2960),
        ("q4f16_1", KvDtype.INT8, 512, 8, 128, 3001),
        ("q4f16_1", KvDtype.INT8, 1024, 4, 64, 2981),
        ("q4f16_1", KvDtype.FLOAT16, 2048, 1, 16, 2953),
        ("q4f16_1", KvDtype.INT8, 2048, 2, 256, 2998),
        ("q4f16_1", KvDtype.INT8, 4096, 1, 64, 2978),
        ("q3f16_g32", KvDtype.INT8, 256, 1, 64, 1805),
        ("q3f16_g32", KvDtype.FLOAT16, 512, 1, 64, 1948),
        ("q3f16_g32", KvDtype.FLOAT32, 512, 2, 64, 2528),
        ("q3f16_g32", KvDtype.INT8, 512, 8, 128, 2563),
    ],
)
def test_full_servers_were_measured_within_5_percent(
    quantization: str, kv_dtype: KvDtype, context_tokens: int, batch: int, chunk_tokens: int, measured_mib: int
) -> None:
    """Peaks of servers under full load, as `tests.bench.memory` measured them, are predicted and not undershot."""
    predicted = plan_memory(
        phi3(quantization), kv_dtype=kv_dtype, batch=batch, context_tokens=context_tokens, chunk_tokens=chunk_tokens,
        budget_bytes=0,
    )  # fmt: skip
    assert 1 <= predicted.peak_bytes / (measured_mib * MIB) <= 1.05


_LOADS = st.fixed_dictionaries(
    {
        "context_tokens": st.integers(1, 4096),
        "batch": st.integers(1, 32),
        "chunk_tokens": st.integers(1, 256),
        "max_draft_tokens": st.integers(0, 8),
    }
)


@given(load=_LOADS, name=st.sampled_from(["context_tokens", "batch", "chunk_tokens", "max_draft_tokens"]))
def test_more_of_anything_takes_no_less(load: dict[str, int], name: str) -> None:
    """Memory grows with each part of the load, which the planner's search relies on."""
    more = load | {name: load[name] + 1}
    assert memory(**more).total_bytes >= memory(**load).total_bytes  # type: ignore[arg-type] # drawn as integers


@pytest.mark.parametrize("kv_dtype", KvDtype)
def test_a_small_reserve_is_never_below_its_least(kv_dtype: KvDtype) -> None:
    """Where 3 % would be less than 64 MiB, 64 MiB are kept free."""
    tiny = plan_memory(
        phi3(), kv_dtype=kv_dtype, batch=1, context_tokens=16, chunk_tokens=16, budget_bytes=1, reserve_bytes=None
    )
    assert (tiny.reserve_bytes or 0) >= 64 * MIB
