from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgephi.text.stop_strings import StopScan, StopStringFinder, stop_violations

# A two-letter alphabet makes overlapping and nested matches common.
short_texts = st.text("ab", max_size=5)


def first_complete(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, on the whole text: the first end at which a stop string ends, and the longest there."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=st.lists(short_texts), stops=st.lists(short_texts.filter(bool), max_size=4))
@example(pieces=["xab", "cd"], stops=["abcd", "bc"])
@example(pieces=["aab"], stops=["ab", "aab"])
def test_output_is_the_text_before_the_first_match_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    """Joined output and match equal the definition on the whole text, for every way of cutting it."""
    finder = StopStringFinder(stops)

    scans = [finder.push(piece) for piece in pieces]
    output = "".join(scan.text for scan in scans) + finder.flush()

    assert (output, scans[-1].matched_stop if scans else None) == first_complete("".join(pieces), stops)


@given(pieces=st.lists(short_texts), stops=st.lists(short_texts.filter(bool), max_size=4))
def test_no_more_is_held_back_than_needed(pieces: list[str], stops: list[str]) -> None:
    """Before a match, what is held is the longest end of the text so far that begins a stop string."""
    finder = StopStringFinder(stops)
    seen = emitted = ""
    for piece in pieces:
        scan = finder.push(piece)
        seen, emitted = seen + piece, emitted + scan.text
        if scan.matched_stop is not None:
            return
        ends = [seen[at:] for at in range(len(seen))]
        longest = max((len(end) for end in ends if any(stop.startswith(end) for stop in stops)), default=0)
        assert emitted == seen[: len(seen) - longest]


def test_a_match_may_cross_several_pieces() -> None:
    """A stop string cut over three pieces is found at its last character, and nothing follows it."""
    finder = StopStringFinder(["\n\nUser:"])

    assert finder.push("fine.\n") == StopScan("fine.", None)
    assert finder.push("\nUse") == StopScan("", None)
    assert finder.push("r: more") == StopScan("", "\n\nUser:")
    assert finder.push("and more") == StopScan("", "\n\nUser:")
    assert finder.flush() == ""


def test_held_text_that_becomes_no_stop_is_released() -> None:
    """A beginning that does not go on, or is the end of the text, is ordinary text."""
    finder = StopStringFinder(["<stop>"])

    assert finder.push("a<st") == StopScan("a", None)
    assert finder.push("ep<s") == StopScan("<step", None)
    assert finder.flush() == "<s"


def test_without_stop_strings_nothing_is_held() -> None:
    """No stop strings: text passes at once."""
    assert StopStringFinder([]).push("abc") == StopScan("abc", None)


@pytest.mark.parametrize(
    ("stops", "fields"),
    [
        (["x"] * 16, []),
        (["x" * 256], []),
        (["x"] * 17, ["stop"]),
        (["ok", "", "x" * 257], ["stop[1]", "stop[2]"]),
    ],
)
def test_bounds(stops: list[str], fields: list[str]) -> None:
    """At most 16 stop strings of 1 to 256 characters; each one out of bounds is named."""
    assert [violation.field for violation in stop_violations(stops)] == fields
