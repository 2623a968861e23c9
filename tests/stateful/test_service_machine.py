from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.stateful.machine import ServiceMachine
from tests.stateful.service import MAX_WAITING, Service

_SETTINGS = settings(max_examples=40, stateful_step_count=40, deadline=None)
# Found at once or not at all: what it says is no one's to read, so nothing is made smaller.
_FAULTY = settings(_SETTINGS, max_examples=200, phases=[Phase.generate], database=None, print_blob=False)


class Deaf(ServiceMachine):
    """A service whose engine does not hear of cancelled calls, so that their places stay taken."""

    @staticmethod
    def plant(service: Service) -> None:
        service.engine.is_deaf = True


class Swapping(ServiceMachine):
    """A service that gives two streams each other's text."""

    @staticmethod
    def plant(service: Service) -> None:
        service.backend.swaps = True


class Generous(ServiceMachine):
    """A service that lets one more wait than it should."""

    max_waiting = MAX_WAITING + 1


@pytest.mark.parametrize(
    ("faulty", "words"),
    [
        (Deaf, "was cancelled and went on"),
        (Swapping, "which does not begin|expected Answer"),
        (Generous, "was accepted"),
    ],
    ids=["deaf", "swapping", "generous"],
)
def test_a_planted_fault_is_found(faulty: type[ServiceMachine], words: str) -> None:
    """The negative control: a service with a fault does not pass, and the fault is what is named."""
    with pytest.raises(AssertionError, match=words):
        run_state_machine_as_test(faulty, settings=_FAULTY)


ServiceMachine.TestCase.settings = _SETTINGS
TestService = ServiceMachine.TestCase
