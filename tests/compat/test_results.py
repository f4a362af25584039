"""The comparison of two runs calls each difference by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.results import Exceptions, Outcome, compare, read_exceptions, read_junit

_JUNIT = """<testsuites><testsuite>
<testcase classname="t.A" name="good"/>
<testcase classname="t.A" name="bad"><failure message="boom">long text</failure></testcase>
<testcase classname="t.A" name="out"><skipped message="no server"/></testcase>
<testcase classname="t.A" name="twice"/>
<testcase classname="t.A" name="twice"><error message="at teardown"/></testcase>
</testsuite></testsuites>"""


def test_junit_is_read_with_the_worst_of_each_test(tmp_path: Path) -> None:
    path = tmp_path / "r.xml"
    path.write_text(_JUNIT)
    outcomes = read_junit(path)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "t.A::good": "passed",
        "t.A::bad": "failed",
        "t.A::out": "skipped",
        "t.A::twice": "error",
    }
    assert outcomes["t.A::bad"].text == "boom"


def test_a_difference_needs_a_reason() -> None:
    passed, failed = Outcome("passed"), Outcome("failed", "why")
    direct = {"a": passed, "b": passed, "c": passed, "d": failed, "gone": passed}
    wire = {"a": passed, "b": failed, "c": failed, "d": passed}
    result = compare("s", direct, wire, Exceptions({"c*": "because it has to"}))
    assert result.explained == {"c": "because it has to"}
    assert set(result.unexplained) == {"b", "gone"}
    assert result.gained == ["d"]
    assert (result.passed_direct, result.passed_both) == (4, 1)
    assert any("UNEXPLAINED b: failed: why" in line for line in result.lines())


def test_an_exception_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('[s]\n"test_x" = "?"\n')
    with pytest.raises(ValueError, match="needs a reason"):
        read_exceptions(path)


def test_the_exceptions_that_are_kept_can_be_read() -> None:
    assert "asyncpg" in read_exceptions(Path(__file__).with_name("exceptions.toml"))
