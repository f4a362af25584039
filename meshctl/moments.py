"""Moments as a person writes them: a day, or a day with an hour. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

_ZONE: Final = r"Z|[+-]\d\d:\d\d"
_MOMENT: Final = re.compile(
    rf"(?P<day>\d{{4}}-\d\d-\d\d)([T ](?P<hour>\d\d:\d\d(:\d\d(\.\d{{1,6}})?)?)(?P<zone>{_ZONE})?)?", re.ASCII
)


def moment_of(text: str) -> str | None:
    """A moment by ISO 8601: at midnight where no hour, in UTC where no zone is named. None for another text.

    Raises ValueError where there is no such day or hour.
    """
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        return None
    at = f"{found['day']}T{found['hour'] or '00:00:00'}{found['zone'] or 'Z'}"
    datetime.fromisoformat(at)
    return at
