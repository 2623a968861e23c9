"""The pure rules: when a process hangs, how often it may die, and which requests are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.isolation.rig import request

from edgephi.engine.request import EngineRequest
from edgephi.errors import RequestQuarantined
from edgephi.isolation.liveness import Deaths, Liveness, LivenessSettings
from edgephi.isolation.quarantine import MAX_DEATHS, Quarantine, fingerprint

SETTINGS = LivenessSettings()


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def silent_for(liveness: Liveness, seconds: float, *, is_loading: bool = False) -> str | None:
    """Look every tick for so long, and return the first verdict."""
    for _ in range(round(seconds / SETTINGS.tick_s)):
        liveness.looked(SETTINGS.tick_s)
        verdict = liveness.verdict(0.0, is_loading=is_loading, work_since=None)
        if verdict is not None:
            return verdict
    return None


def test_silence_is_noticed_within_ten_seconds() -> None:
    """A process that says nothing is killed in time for callers to know within 11 s, and not while it may be late."""
    assert silent_for(Liveness(SETTINGS), 7) is None
    assert "silent" in (silent_for(Liveness(SETTINGS), 9) or "")
    assert SETTINGS.max_silence_s + SETTINGS.tick_s + SETTINGS.heartbeat_s < 10


def test_every_message_ends_a_silence() -> None:
    """Silences that are each short enough never add up."""
    liveness = Liveness(SETTINGS)
    for _ in range(5):
        assert silent_for(liveness, 7) is None
        liveness.heard()


def test_loading_may_be_silent_for_longer() -> None:
    """A process that reads libraries from slow storage is not killed for it, but one that hangs there is."""
    assert silent_for(Liveness(SETTINGS), 50, is_loading=True) is None
    assert silent_for(Liveness(SETTINGS), 70, is_loading=True) is not None


def test_a_pause_of_the_watcher_is_no_silence() -> None:
    """One look that took an hour, because this process was stopped as well, kills nobody."""
    liveness = Liveness(SETTINGS)
    liveness.looked(3600.0)
    assert liveness.verdict(0.0, is_loading=False, work_since=None) is None


def test_a_step_has_a_limit_that_slow_steps_raise() -> None:
    """A step may take 10 s, or five times the slowest one seen, counted from when there was work."""

    def verdict(liveness: Liveness, now: float) -> str | None:
        return liveness.verdict(now, is_loading=False, work_since=100.0)

    liveness = Liveness(SETTINGS)
    assert verdict(liveness, 109.9) is None
    assert "step" in (verdict(liveness, 110.1) or "")
    liveness.stepped(104.0, work_since=100.0)
    assert verdict(liveness, 113.9) is None
    liveness.stepped(110.0, work_since=100.0)  # took 6 s
    assert verdict(liveness, 139.9) is None
    assert verdict(liveness, 140.1) is not None


def test_idle_time_is_no_slow_step() -> None:
    """The first step after an hour without work does not raise the limit; without work nothing is judged."""
    liveness = Liveness(SETTINGS)
    liveness.stepped(100.0, work_since=99.0)
    assert liveness.verdict(3700.0, is_loading=False, work_since=None) is None
    liveness.stepped(3701.0, work_since=3700.0)
    assert liveness.verdict(3711.5, is_loading=False, work_since=3700.0) is not None


def test_a_watch_that_is_off_judges_nothing() -> None:
    """The negative control of the watch: switched off, a hang is no matter."""
    liveness = Liveness(LivenessSettings(is_watching=False))
    for _ in range(1000):
        liveness.looked(1.0)
    assert liveness.verdict(1e9, is_loading=False, work_since=0.0) is None


def test_the_sixth_death_in_ten_minutes_is_the_last() -> None:
    """Five deaths are started again, the first at once and each within 2 s; a sixth is not, unless time has passed."""
    clock = Clock()
    deaths = Deaths(SETTINGS, clock=clock)
    delays = [deaths.add() for _ in range(6)]
    assert delays[0] == 0
    assert all(delay is not None and delay <= 2 for delay in delays[:5])
    assert delays[5] is None
    clock.now += 599
    assert deaths.add() is None
    clock.now += 601
    assert deaths.add() == 0


def test_a_fingerprint_is_of_what_is_computed() -> None:
    """Id, client and deadline change nothing; prompt, length and sampling do. The prompt cannot be read from it."""
    same = {fingerprint(request(name, 1, 2, 3, client_id=name, deadline_s=1.0)) for name in ("a", "b")}
    assert len(same) == 1
    others = {fingerprint(request("a", 1, 2, 4)), fingerprint(request("a", 1, 2, 3, max_tokens=9))}
    assert len(same | others) == 3
    assert len(next(iter(same))) == 16


def test_the_second_death_is_the_last_of_a_request() -> None:
    """A request runs freely, then alone, then not at all for ten minutes, then freely again."""
    clock = Clock()
    quarantine = Quarantine(clock=clock)
    bad = request("a", 7)
    assert quarantine.admit(bad) is False
    quarantine.died([bad])
    assert quarantine.admit(bad) is True
    quarantine.died([bad])
    clock.now += 1
    with pytest.raises(RequestQuarantined, match="2 times; it is refused for 599 s more"):
        quarantine.admit(bad)
    clock.now += 600
    assert quarantine.admit(bad) is False


def test_an_innocent_neighbour_is_cleared() -> None:
    """Who ran beside the bad one is a suspect until it has finished once."""
    quarantine = Quarantine()
    bad, good = request("a", 7), request("b", 8)
    quarantine.died([bad, good])
    assert quarantine.admit(good) is True
    quarantine.finished(good)
    assert quarantine.admit(good) is False
    assert quarantine.admit(bad) is True


@given(st.lists(st.integers(0, 500), max_size=300))
def test_the_table_is_bounded(prompts: list[int]) -> None:
    """However many different requests are beside deaths, the newest few are remembered."""
    quarantine = Quarantine(max_entries=20)
    for prompt in prompts:
        quarantine.died([request("a", prompt)])
        assert len(quarantine) <= 20
        assert _is_known(quarantine, request("b", prompt))


def _is_known(quarantine: Quarantine, asked: EngineRequest) -> bool:
    try:
        return quarantine.admit(asked)
    except RequestQuarantined:
        return True


def test_two_deaths_are_what_a_request_may_cost() -> None:
    """The bound of the goal: the first death and at most one more."""
    assert MAX_DEATHS == 2
