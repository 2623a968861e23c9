"""A real engine process with a fake backend: it answers, dies, hangs and is started again."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.isolation.conftest import Start
from tests.isolation.engine_program import Fault, FaultyBackend
from tests.isolation.rig import (
    PATIENT,
    QUICK,
    Call,
    is_running,
    request,
    submit,
    wait_for,
    wait_running,
)

from edgephi.engine.core import Engine, EngineConfig
from edgephi.engine.health import EngineState
from edgephi.engine.loop import EngineLoop
from edgephi.engine.request import EngineEvent, FinishReason, PrefillProgress
from edgephi.errors import (
    BundleInvalid,
    ConfigError,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    PromptTooLong,
    RequestQuarantined,
)
from edgephi.isolation.remote_loop import RemoteLoop


def here(asked: list[tuple[int, ...]]) -> list[list[int]]:
    """Answers of the same engine in this process."""
    config = EngineConfig(max_running=4, max_waiting=8, prefill_chunk_tokens=8, mixed_chunk_tokens=4)
    with EngineLoop(Engine(FaultyBackend(0.0), config)) as loop:
        calls = [Call() for _ in asked]
        for index, (prompt, call) in enumerate(zip(asked, calls, strict=True)):
            loop.submit(request(str(index), *prompt), call)
        for call in calls:
            call.end()
    return [call.tokens for call in calls]


def test_answers_are_those_of_one_process(start: Start) -> None:
    """Many requests at once get the tokens, the progress and the usage that they get without a process between."""
    loop = start()
    prompts = [tuple(range(index, index + 12)) for index in range(1, 7)]
    calls = [submit(loop, request(str(index), *prompt)) for index, prompt in enumerate(prompts)]
    ends = [call.end() for call in calls]
    assert [call.tokens for call in calls] == here(prompts)
    assert {end.reason for end in ends} == {FinishReason.LENGTH}
    assert {(end.usage.prompt_tokens, end.usage.output_tokens) for end in ends} == {(12, 8)}
    assert isinstance(calls[0].events[0], PrefillProgress)
    stats = loop.stats()
    assert (stats.running, stats.waiting, stats.pages_used, stats.tokens_generated_total) == (0, 0, 0, 48)


def test_refusals_are_those_of_the_engine(start: Start) -> None:
    """What is out of bounds, too long, too much or twice the same is refused in the caller's thread."""
    loop = start(step_delay_s=0.02, max_running=1, max_waiting=1)
    with pytest.raises(InvalidRequest, match="token id 1000; must be 0 to 999"):
        loop.submit(request("a", 1000), Call())
    with pytest.raises(PromptTooLong):
        loop.validate(request("a", max_tokens=300))
    first = submit(loop, request("a", max_tokens=100))
    with pytest.raises(InvalidRequest, match="'a' belongs to a live request"):
        loop.submit(request("a"), Call())
    submit(loop, request("b", 5))
    with pytest.raises(Overloaded, match="2 requests are live and 2 is the limit"):
        loop.submit(request("c", 6), Call())
    loop.cancel(request("a").request_id)
    assert first.end().reason is FinishReason.CANCELLED


def test_limits_are_set_and_survive_a_death(start: Start) -> None:
    """New limits hold for the next request at once, and for the engine that is started after a death."""
    loop = start()
    lowered = dataclasses.replace(loop.max_limits, max_request_tokens=20, reason="a test")
    loop.set_limits(lowered)
    with pytest.raises(ConfigError, match="max_running is 5"):
        loop.set_limits(dataclasses.replace(lowered, max_running=5))
    for starts in (1, 2):
        wait_running(loop, starts)
        assert loop.limits == lowered == loop.stats().limits
        with pytest.raises(Overloaded, match="a test"):
            loop.submit(request("a", max_tokens=18), Call())
        os.kill(loop.pid or 0, signal.SIGKILL)
        wait_for(lambda starts=starts: loop.health().deaths_total == starts)  # type: ignore[misc]


def test_after_a_cancel_there_is_nothing_but_the_end(start: Start) -> None:
    """Cancels from other threads and from a sink end a request with the first reason, and nothing is heard after."""
    loop = start(step_delay_s=0.002)
    call = submit(loop, request("a", max_tokens=200))
    wait_for(lambda: len(call.tokens) > 2)
    loop.cancel(request("a").request_id, FinishReason.DEADLINE)
    num_events = len(call.events)
    loop.cancel(request("a").request_id)
    assert call.end().reason is FinishReason.DEADLINE
    assert len(call.events) <= num_events + 2  # one may have been in its sink when the cancel came

    inside = Call()

    def sink(event: EngineEvent) -> None:
        inside(event)
        loop.cancel(event.request_id, FinishReason.STOP)

    loop.submit(request("b", max_tokens=200), sink)
    assert inside.end().reason is FinishReason.STOP
    assert len(inside.events) == 2
    loop.cancel(request("nobody").request_id)


def test_a_sink_that_raises_loses_its_request_alone(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """An error in one caller's code cancels its request, and the others go on."""
    loop = start()
    other = submit(loop, request("b", 5))

    def sink(event: EngineEvent) -> None:
        raise RuntimeError("a caller's bug")

    loop.submit(request("a"), sink)
    assert other.end().reason is FinishReason.LENGTH
    wait_for(lambda: loop.stats().running == loop.stats().waiting == 0)
    assert "engine.sink_failed" in caplog.text
    assert submit(loop, request("a")).end().reason is FinishReason.LENGTH


DEADLY = [Fault.KILL, Fault.SEGFAULT, Fault.EXIT, Fault.BREAK]


@pytest.mark.parametrize("fault", DEADLY)
def test_a_death_ends_everyone_and_the_next_process_serves(start: Start, fault: Fault) -> None:
    """At each of the first steps: every caller gets one end with ERROR, and a new process answers as before."""
    loop = start()
    num_steps = 6 if fault is Fault.KILL else 2
    for step in range(1, num_steps + 1):
        wait_running(loop, step)
        pid = loop.pid
        calls = [submit(loop, request(name, step, 2, 3, max_tokens=60)) for name in "ab"]
        calls.append(submit(loop, request("bad", fault, step)))
        assert {call.end().reason for call in calls} == {FinishReason.ERROR}
        wait_running(loop, step + 1)
        assert loop.pid != pid
        assert submit(loop, request("c", 1, 2, 3)).end().reason is FinishReason.LENGTH
    assert loop.health().deaths_total == num_steps
    assert loop.is_alive


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.KILL, "was ended by SIGKILL"),
        (Fault.SEGFAULT, "was ended by SIGSEGV"),
        (Fault.EXIT, "exited with status 3"),
        (Fault.BREAK, "internal error"),
    ],
)
def test_the_reason_of_a_death_is_told(start: Start, fault: Fault, said: str) -> None:
    """Health and the ends of requests name the signal or the status."""
    loop = start()
    error = submit(loop, request("bad", fault, 1)).end().error
    assert error is not None
    assert said in error
    assert said in (loop.health().last_death or "")


def test_an_exception_of_the_backend_is_no_death(start: Start) -> None:
    """The requests of the step end with ERROR, and the same process goes on."""
    loop = start()
    pid = loop.pid
    assert submit(loop, request("bad", Fault.RAISE, 2)).end().reason is FinishReason.ERROR
    assert submit(loop, request("a")).end().reason is FinishReason.LENGTH
    assert (loop.pid, loop.health().deaths_total) == (pid, 0)


@pytest.mark.parametrize(("fault", "said"), [(Fault.STOP, "silent"), (Fault.HANG, "step")])
def test_a_hang_is_ended(start: Start, fault: Fault, said: str) -> None:
    """A stopped process and a forward without end are noticed, everyone is told, and the next process serves."""
    loop = start(liveness=QUICK)
    calls = [submit(loop, request("bad", fault, 2)), submit(loop, request("a", max_tokens=60))]
    for call in calls:
        assert said in (call.end().error or "")
    wait_running(loop, 2)
    assert submit(loop, request("a")).end().reason is FinishReason.LENGTH


@pytest.mark.parametrize("fault", [Fault.STOP, Fault.HANG])
def test_without_the_watch_a_hang_lasts(start: Start, fault: Fault) -> None:
    """The negative control: with the watch off, the callers of a process that hangs wait for longer than with it."""
    loop = start(liveness=dataclasses.replace(QUICK, is_watching=False))
    call = submit(loop, request("bad", fault, 2))
    assert not call.is_over.wait(QUICK.max_silence_s + 1.5)
    assert loop.health().deaths_total == 0


def test_a_stopped_process_is_noticed_while_nobody_asks(start: Start) -> None:
    """A hang is found without any request, so that the next caller does not pay for it."""
    loop = start(liveness=QUICK)
    os.kill(loop.pid or 0, signal.SIGSTOP)
    wait_running(loop, 2)


def test_slow_steps_are_no_hang(start: Start) -> None:
    """Steps that take most of their limit are let be, and so is an engine that has nothing to do."""
    loop = start(liveness=QUICK, step_delay_s=1.2)
    assert submit(loop, request("a", max_tokens=3)).end().reason is FinishReason.LENGTH
    time.sleep(QUICK.min_step_s + 0.5)
    assert loop.health().deaths_total == 0


def test_counters_go_on_after_a_death(start: Start) -> None:
    """Totals never go back, for what watches them takes differences; gauges of a dead engine are zero."""
    loop = start()
    submit(loop, request("a")).end()
    before = loop.stats()
    os.kill(loop.pid or 0, signal.SIGKILL)
    wait_for(lambda: loop.health().deaths_total == 1)
    dead = loop.stats()
    assert dead.tokens_generated_total == before.tokens_generated_total == 8
    assert (dead.running, dead.pages_used, dead.pages_cached) == (0, 0, 0)
    wait_running(loop, 2)
    submit(loop, request("a")).end()
    assert loop.stats().tokens_generated_total == 16


def test_while_it_starts_again_requests_are_refused(start: Start) -> None:
    """Between a death and the next start a request is NotReady, and the state says why."""
    loop = start()
    os.kill(loop.pid or 0, signal.SIGKILL)
    wait_for(lambda: loop.health().deaths_total == 1)
    if loop.health().state is EngineState.STARTING:  # it takes a good part of a second
        with pytest.raises(NotReady, match="started again"):
            loop.submit(request("a"), Call())
    wait_running(loop, 2)


def test_too_many_deaths_are_the_end(start: Start) -> None:
    """After the last death that is allowed nothing is started, requests are refused, and the loop is not alive."""
    loop = start(liveness=dataclasses.replace(PATIENT, max_deaths=1))
    for deaths in (1, 2):
        wait_running(loop, deaths)
        os.kill(loop.pid or 0, signal.SIGKILL)
        wait_for(lambda deaths=deaths: loop.health().deaths_total == deaths)  # type: ignore[misc]
    wait_for(lambda: not loop.is_alive)
    assert loop.health().state is EngineState.FAILED
    with pytest.raises(EngineFailed, match="too often"):
        loop.submit(request("a"), Call())
    assert loop.pid is None


def test_a_request_that_kills_costs_two_deaths_and_its_neighbours_nothing(start: Start) -> None:
    """The second death with the same request is the last; those beside it are suspects once and then free."""
    loop = start()
    bad, good = request("bad", Fault.KILL, 2, 55), request("good", 1, 2, 3, max_tokens=60)
    for call in [submit(loop, good), submit(loop, bad)]:
        assert call.end().reason is FinishReason.ERROR
    wait_running(loop, 2)
    again = [submit(loop, good), submit(loop, dataclasses.replace(bad, client_id="another"))]
    assert again[0].end().reason is FinishReason.LENGTH  # a suspect, so it ran alone, and is cleared
    assert again[1].end().reason is FinishReason.ERROR
    wait_running(loop, 3)
    for asked in (bad, dataclasses.replace(bad, request_id=request("new").request_id)):
        with pytest.raises(RequestQuarantined, match="ended the engine 2 times"):
            loop.submit(asked, Call())
    with pytest.raises(RequestQuarantined):
        loop.validate(bad)
    assert submit(loop, good).end().reason is FinishReason.LENGTH
    health = loop.health()
    assert (health.deaths_total, health.quarantined_total) == (2, 3)


def test_without_quarantine_a_request_kills_for_ever(start: Start) -> None:
    """The negative control: a quarantine that forgets at once lets the same request end the engine a third time."""
    loop = start(hold_s=0.0)
    for deaths in range(1, 4):
        wait_running(loop, deaths)
        submit(loop, request("bad", Fault.KILL, 1)).end()
    assert loop.health().deaths_total == 3


def test_a_suspect_runs_alone(start: Start) -> None:
    """Nothing starts beside a suspect, and it starts beside nothing; one that waits can be cancelled."""
    loop = start(step_delay_s=0.01)
    suspect = request("suspect", Fault.KILL, 40, max_tokens=20)  # would meet its fault after its end
    killer = submit(loop, request("killer", Fault.KILL, 3))
    submit(loop, suspect)
    killer.end()
    wait_running(loop, 2)
    first = submit(loop, request("first", 1, max_tokens=30))
    lonely = submit(loop, suspect)
    behind = submit(loop, request("behind", 2, max_tokens=5))
    given_up = submit(loop, request("given up", 3, max_tokens=5))
    loop.cancel(request("given up").request_id)
    assert given_up.end().reason is FinishReason.CANCELLED
    assert not first.is_over.is_set()
    wait_for(lambda: loop.stats().waiting == 2)
    first.end()
    assert not lonely.is_over.is_set()
    lonely.end()
    assert not behind.events or first.ended_at < lonely.ended_at
    assert behind.end().reason is FinishReason.LENGTH
    assert first.ended_at < lonely.ended_at < behind.ended_at


@pytest.mark.parametrize("kind", [ModelNotFound, BundleInvalid, InsufficientMemory, ConfigError])
def test_an_error_of_loading_arrives_as_itself(start: Start, kind: type[Exception]) -> None:
    """What the process raises while loading is raised by wait_loaded: same class, same message; nothing is retried."""
    loop = start(load_error=kind.__name__, waits=False)
    with pytest.raises(kind, match="a message with 3 numbers: 1, 2, 3"):
        loop.wait_loaded()
    wait_for(lambda: not loop.is_alive)


def test_a_bug_while_loading_is_logged_and_told(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is not ours ends the start with its class; the log has the traceback."""
    with pytest.raises(EngineFailed, match="ValueError"):
        start(load_error="not one of ours")
    assert "engine.process_failed" in caplog.text
    assert "a message with 3 numbers" in caplog.text


def test_a_death_while_loading_is_told(start: Start) -> None:
    """A process that is killed before it has loaded, as for want of memory, ends the wait with how it ended."""
    with pytest.raises(EngineFailed, match=r"was ended by SIGKILL while loading the model.*memory"):
        start(load_fault=Fault.KILL)


def test_a_hang_while_loading_is_ended(start: Start) -> None:
    """A process that stops while it loads is found by its own, longer limit."""
    with pytest.raises(EngineFailed, match="silent"):
        start(load_fault=Fault.STOP, liveness=dataclasses.replace(QUICK, max_loading_silence_s=2.0))


def test_a_program_that_cannot_be_started_is_told() -> None:
    """Without the program the wait ends at once."""
    with RemoteLoop(("/no/such/program",), b"") as loop, pytest.raises(EngineFailed, match="cannot be started"):
        loop.wait_loaded()


def test_a_program_that_talks_nonsense_is_ended() -> None:
    """Bytes that are no message end the process and the wait."""
    program = "import os, sys, time; os.write(int(sys.argv[1]), b'hello, this is no frame'); time.sleep(60)"
    nonsense = (sys.executable, "-c", program)
    with RemoteLoop(nonsense, b"") as loop, pytest.raises(EngineFailed, match="announced"):
        loop.wait_loaded()


def test_later_loads_that_fail_are_deaths(start: Start, tmp_path: Path) -> None:
    """When a process dies and the next ones cannot load, they are counted and tried again until it is too often."""
    loop = start(
        load_error="InsufficientMemory",
        num_good_loads=1,
        count_file=str(tmp_path / "loads"),
        liveness=dataclasses.replace(PATIENT, max_deaths=2),
    )
    os.kill(loop.pid or 0, signal.SIGKILL)
    wait_for(lambda: not loop.is_alive)
    health = loop.health()
    assert (health.state, health.deaths_total) == (EngineState.FAILED, 3)
    assert "3 numbers" in (health.last_death or "")


def test_progress_is_told_on_the_waiting_thread(start: Start) -> None:
    """Progress of a compiler in the process reaches the caller of wait_loaded, on its thread and in order."""
    told: list[tuple[str, int, int, str]] = []
    loop = start(num_progress=3, waits=False)
    loop.wait_loaded(lambda label, done, total: told.append((label, done, total, threading.current_thread().name)))
    assert told == [("compiling", done, 3, threading.current_thread().name) for done in (1, 2, 3)]


def test_log_lines_of_the_process_pass_through(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A line that the process logs is logged here, with its level and its logger."""
    start(log_line="a line from the engine")
    assert ("test.engine", logging.WARNING, "a line from the engine") in caplog.record_tuples


def test_close_ends_everything_at_once(start: Start) -> None:
    """Close ends live requests with CANCELLED and the process, although a forward hangs; again it does nothing."""
    loop = start()
    pid = loop.pid or 0
    call = submit(loop, request("bad", Fault.HANG, 1))
    wait_for(lambda: loop.stats().waiting + loop.stats().running > 0)
    loop.close()
    assert call.end().reason is FinishReason.CANCELLED
    assert not is_running(pid)
    loop.close()
    assert not loop.is_alive
    with pytest.raises(NotReady, match="closed"):
        loop.submit(request("a"), Call())


def test_close_while_loading_waits_for_nothing(start: Start) -> None:
    """Close does not wait for a load that hangs, and who waits for it is told."""
    loop = start(load_fault=Fault.HANG, waits=False)
    loop.close()
    with pytest.raises(EngineFailed, match="closed while"):
        loop.wait_loaded()


def test_close_from_a_sink(start: Start) -> None:
    """A sink may close the loop it is called by."""
    loop = start()
    call = Call()

    def sink(event: EngineEvent) -> None:
        call(event)
        loop.close()

    loop.submit(request("a", max_tokens=50), sink)
    assert call.end().reason is FinishReason.CANCELLED
    wait_for(lambda: not loop.is_alive)


def test_the_process_is_a_good_child(start: Start) -> None:
    """It goes first when memory is short, writes no core, ignores what a terminal sends and runs no shell's signals."""
    loop = start()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    status = Path(f"/proc/{loop.pid}/status").read_text()
    assert int(Path(f"/proc/{loop.pid}/oom_score_adj").read_text()) >= max(own, 500)
    assert "Max core file size        0                    0" in Path(f"/proc/{loop.pid}/limits").read_text()
    ignored = int(status.split("SigIgn:\t")[1].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ignored & 1 << (number - 1)
    assert os.getpgid(loop.pid or 0) != os.getpgid(0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*DEADLY, Fault.STOP, Fault.HANG])
def test_two_hundred_deaths(start: Start, fault: Fault) -> None:
    """200 of 200 deaths of each kind at changing steps: every caller gets one end, and the next process serves."""
    loop = start(liveness=QUICK)
    for index in range(200):
        wait_running(loop, index + 1)
        calls = [submit(loop, request(name, 1 + index % 90, 2, 3, max_tokens=60)) for name in "ab"]
        calls.append(submit(loop, request("bad", fault, 1 + index % 20, index, max_tokens=30)))
        assert {call.end().reason for call in calls} == {FinishReason.ERROR}
    assert loop.health().deaths_total == 200


@pytest.mark.slow
def test_a_stopped_process_is_noticed_in_time_as_shipped(start: Start) -> None:
    """With the times that are shipped, callers of a stopped process know within 11 s."""
    from edgephi.isolation.liveness import LivenessSettings

    loop = start(liveness=dataclasses.replace(LivenessSettings(), max_deaths=1000))
    for index in range(20):
        wait_running(loop, index + 1)
        call = submit(loop, request("bad", Fault.STOP, 1 + index, index))
        stopped_at = time.monotonic()
        assert call.end().reason is FinishReason.ERROR
        assert call.ended_at - stopped_at < 11
