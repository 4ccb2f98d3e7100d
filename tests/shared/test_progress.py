import pytest

from shared import progress as module
from shared.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    return clock


def test_short_work_leaves_no_trace_in_a_log(clock, capsys):
    with progress("quick", 10) as advance:
        for _ in range(10):
            clock.now += 0.5
            advance()
    assert capsys.readouterr().err == ""


def test_long_work_says_how_much_is_left(clock, capsys):
    with progress("slow", 100) as advance:
        for _ in range(25):
            clock.now += 1.0
            advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["slow: 20/100, 40 s left", "slow: 40/100, 30 s left"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with progress("bar", 3) as advance:
        advance(3)
    assert "left" not in capsys.readouterr().err
