"""An engine process that dies under a real front: one end for each caller, the front stays, the next one answers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence

import pytest
from tests.bench.control_group import NoControlGroup
from tests.e2e.engine_death import (
    ENGINE_FAILED,
    MAX_HEALTH_S,
    MAX_RESPAWN_S,
    MAX_STATUS_S,
    STEP_S,
    confined,
    eat_memory,
    loading_s,
    stop_engine,
)
from tests.e2e.front import FrontOptions
from tests.e2e.rig import QUICK, WAIT_S, End, Front, FrontLostError, serving
from tests.isolation.engine_program import Fault

SHORT = FrontOptions(liveness=QUICK, step_delay_s=STEP_S)
DEADLY = (Fault.KILL, Fault.SEGFAULT, Fault.EXIT, Fault.BREAK)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """A front whose engine may die as often as it likes."""
    with serving(SHORT) as made:
        yield made


def told(ends: Sequence[End]) -> set[tuple[str, str | None]]:
    """What callers are told: codes and reasons."""
    return {(end.code, end.reason) for end in ends}


def check_nothing_is_left(front: Front) -> None:
    """Every call that began has ended, once, and the process is the one that was started."""
    assert front.is_alive
    assert front.metric("edgephi_server_answers") == 0
    # The server counts a call a moment after its client knows the end.
    deadline = time.monotonic() + WAIT_S
    while front.metric("grpc_server_started_total") != front.metric("grpc_server_handled_total"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("fault", [*DEADLY, Fault.HANG, Fault.RAISE], ids=lambda fault: fault.name)
def test_whatever_the_engine_meets_at_whatever_step_the_front_answers(front: Front, fault: Fault) -> None:
    """
    Row 19. At each of the first steps: UNAVAILABLE for all that were running, once, and the next chat is answered.

    Liveness is SERVING all the while and quick to tell so. An exception of the backend is no death.
    """
    steps = range(1, {Fault.KILL: 6, Fault.HANG: 2}.get(fault, 4))
    num_deaths = front.num_deaths
    with front.probed() as health:
        for step in steps:
            beside = [front.ask(f"a story {fault.name} {step} {index}", 200) for index in range(2)]
            assert all(asked.has_begun.wait(WAIT_S) for asked in beside)
            ends = [front.chat(f"{fault.name} {step} please", 60), *(asked.end() for asked in beside)]
            assert told(ends) == {ENGINE_FAILED}, front.log()
            assert front.recover(f"after {fault.name} {step}") < WAIT_S
    assert front.num_deaths == num_deaths + (0 if fault is Fault.RAISE else len(steps))
    assert health.failures == []
    assert health.p99_s < MAX_HEALTH_S
    check_nothing_is_left(front)


def test_without_a_process_of_its_own_the_engine_takes_the_front_with_it() -> None:
    """The negative control of rows 19 and 20: in one process the same request ends the front and everyone's call."""
    with serving(FrontOptions(is_isolated=False, step_delay_s=STEP_S)) as front:
        beside = front.ask("a story", 200)
        assert beside.has_begun.wait(WAIT_S)
        assert told([front.chat("KILL 2 please"), beside.end()]) == {("UNAVAILABLE", None)}
        assert front.process.wait(WAIT_S) == -signal.SIGKILL


def test_a_request_that_kills_costs_two_engines_and_never_a_third() -> None:
    """
    Row 17. The third time it is refused at once and for good, while what ran beside it is answered.

    After one death both are suspects; each then runs alone, so that only the guilty one is blamed for a second.
    """
    with serving(SHORT) as front:
        pill = "KILL 3 this is the poison"
        beside = front.ask("a story", 200)
        assert beside.has_begun.wait(WAIT_S)
        assert told([front.chat(pill), beside.end()]) == {ENGINE_FAILED}
        front.recover()
        assert front.chat("a story", 200).code == "OK"
        assert told([front.chat(pill)]) == {ENGINE_FAILED}
        front.recover()
        pid = front.engine_pid
        beside = front.ask("another story", 100)
        refused = [front.chat(pill) for _ in range(3)]
        assert told(refused) == {("FAILED_PRECONDITION", "REQUEST_QUARANTINED")}
        assert beside.end().code == "OK"
        assert front.chat("KILL 999 another one, which ends before its step").code == "OK"
        assert (front.num_deaths, front.engine_pid) == (2, pid)
        assert front.metric("edgephi_requests_quarantined_total") == len(refused)
        check_nothing_is_left(front)


def test_without_quarantine_the_same_request_kills_for_ever() -> None:
    """The negative control of row 17: with nothing remembered the third request ends a third engine."""
    with serving(FrontOptions(liveness=QUICK, has_quarantine=False)) as front:
        for deaths in range(1, 4):
            assert told([front.chat("KILL 3 this is the poison")]) == {ENGINE_FAILED}
            front.recover()
            assert front.num_deaths == deaths


def test_a_stopped_engine_is_noticed_and_replaced(front: Front) -> None:
    """Row 18 with short times: all that run and wait are told, and another engine answers soon after."""
    load_s, num_deaths = loading_s(), front.num_deaths
    with front.probed() as health:
        for index in range(3):
            death = stop_engine(front, f"stopped {index}")
            assert told(death.ends) <= {ENGINE_FAILED, ("UNAVAILABLE", "NOT_READY")}
            assert death.status_s < QUICK["max_silence_s"] + 1.5
            assert death.respawn_s < load_s + MAX_RESPAWN_S
    assert front.num_deaths == num_deaths + 3
    assert (health.failures, health.p99_s < MAX_HEALTH_S) == ([], True)
    check_nothing_is_left(front)


def test_a_stopped_engine_is_noticed_in_time_as_shipped() -> None:
    """Row 18 with the times that edgephi serve has: every caller knows within 11 s, and health is served meanwhile."""
    with serving(FrontOptions(step_delay_s=STEP_S)) as front, front.probed() as health:
        death = stop_engine(front, "as shipped")
        assert told(death.ends) == {ENGINE_FAILED}
        assert len(death.ends) > 4
        assert death.status_s < MAX_STATUS_S
        assert death.respawn_s < loading_s() + MAX_RESPAWN_S
        assert (health.failures, health.p99_s < MAX_HEALTH_S) == ([], True)
        check_nothing_is_left(front)


def test_without_the_watch_a_stopped_engine_keeps_its_callers() -> None:
    """The negative control of row 18: nobody is told anything until the process is made to go on."""
    with serving(FrontOptions(liveness={**QUICK, "is_watching": False}, step_delay_s=STEP_S)) as front:
        asked = front.ask("a story", 100)
        assert asked.has_begun.wait(WAIT_S)
        os.kill(front.engine_pid, signal.SIGSTOP)
        assert not asked.is_over.wait(QUICK["max_silence_s"] + 1.5)
        os.kill(front.engine_pid, signal.SIGCONT)
        assert asked.end().code == "OK"
        assert front.num_deaths == 0


def test_an_engine_without_memory_dies_alone() -> None:
    """
    Row 20. In a control group that its engine fills the kernel takes the engine, and the front serves on.

    Known limit: the kernel looks past a process whose threads have ended, although its memory is not free yet. A front
    that asks for memory in those milliseconds may be the only process left in the group, and is taken as well.
    """
    with contextlib.ExitStack() as stack:
        try:
            front, group = stack.enter_context(confined(SHORT))
        except NoControlGroup as reason:
            pytest.skip(str(reason))
        health = stack.enter_context(front.probed())
        for count in range(1, 4):
            try:
                death = eat_memory(front, f"memory {count}")
            except FrontLostError as lost:
                assert group.num_oom_kills == count + 1
                pytest.xfail(f"{lost}: the kernel took both")
            assert told(death.ends) <= {ENGINE_FAILED, ("UNAVAILABLE", "NOT_READY")}
            assert (group.num_oom_kills, front.num_deaths) == (count, count)
        check_nothing_is_left(front)
        assert (health.failures, health.p99_s < MAX_HEALTH_S) == ([], True)


def test_without_a_process_of_its_own_an_engine_without_memory_is_the_front() -> None:
    """The negative control of row 20: in one process the kernel takes the front."""
    try:
        with confined(FrontOptions(is_isolated=False)) as (front, group):
            assert front.chat("EAT 2 please").code == "UNAVAILABLE"
            assert front.process.wait(WAIT_S) == -signal.SIGKILL
            assert group.num_oom_kills == 1
    except NoControlGroup as reason:
        pytest.skip(str(reason))
