"""Fifteen seconds of link torture; two minutes are `python -m tests.integration.torture --seconds 120`."""

from __future__ import annotations

import pytest

from tests.integration.torture import torture


@pytest.mark.slow
async def test_no_client_notices_a_breaking_line() -> None:
    outcome = await torture(seconds=15, seed=1)
    assert outcome.clean, outcome.text()
    assert outcome.resumes >= 5, outcome.text()
    assert outcome.resent_bytes > 0, outcome.text()
    assert outcome.acknowledged > 100, outcome.text()
    assert outcome.copies > 0, outcome.text()
