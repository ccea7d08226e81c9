"""Progress: steps are reported to the listener of the current context."""

from __future__ import annotations

import threading

from xcam.progress import counted, listening, steps


def test_every_step_and_the_end_are_reported() -> None:
    events: list[tuple[str, int, int]] = []
    with listening(lambda *event: events.append(event)):
        assert list(steps(["a", "b"], "letters")) == ["a", "b"]
        assert list(counted(iter("x"), "late", 3)) == ["x"]
    assert events == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2), ("late", 0, 3), ("late", 3, 3)]
    assert list(steps([1], "unheard")) == [1]
    assert len(events) == 5


def test_a_listener_hears_its_own_thread_only() -> None:
    events: list[str] = []
    with listening(lambda activity, *_: events.append(activity)):
        thread = threading.Thread(target=lambda: list(steps([1], "other")))
        thread.start()
        thread.join()
        list(steps([1], "own"))
    assert events == ["own", "own"]
