"""No secret leaves through a log line, whichever form the line has."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.errors import MeshError
from tunnel_proto.logs import REDACTED, configure_logs, redact, redact_text


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.configure(**before)


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_are_in_no_form_of_a_line(style: Literal["json", "console"]) -> None:
    output = io.StringIO()
    configure_logs(style, "debug", program="qgate", stream=output)
    log = structlog.get_logger()
    log.info(
        "login",
        password="canary-1",
        nested={"api_token": "canary-2", "dsn": "postgres://u:canary-3@h/d"},
        listed=["postgres://u:canary-3@h/d"],
        packet=b"canary-4",
        error=MeshError("password='canary-5 x' host=h"),
    )
    logging.getLogger("asyncpg").warning("cannot reach %s", "postgres://u:canary-6@h/d")
    local_secret = "canary-7"
    try:
        raise RuntimeError(f"postgres://u:{local_secret}@h/d")
    except RuntimeError:
        if style == "json":
            log.exception("failed")
    assert "canary" not in output.getvalue()
    assert "login" in output.getvalue()


def test_a_json_line_is_one_object_with_the_names_that_collectors_expect() -> None:
    output = io.StringIO()
    configure_logs("json", "info", program="qgate", stream=output)
    structlog.get_logger().debug("unseen")
    structlog.get_logger().info("seen", count=3, private_key=None)
    line = json.loads(output.getvalue())
    assert (line["message"], line["level"], line["program"], line["count"]) == ("seen", "info", "qgate", 3)
    assert line["timestamp"].endswith("Z")
    assert line["private_key"] is None


@given(
    st.text(
        st.characters(exclude_characters="@/ \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0", codec="ascii"),
        min_size=1,
    )
)
def test_a_url_never_keeps_its_password(password: str) -> None:
    assert redact_text(f"at postgresql://user:{password}@host/db now") == (
        f"at postgresql://user:{REDACTED}@host/db now"
    )


def test_a_verifier_is_hidden_and_plain_text_is_left_alone() -> None:
    verifier = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
    assert redact_text(f"role has {verifier}.") == f"role has {REDACTED}."
    assert redact(None, "info", {"event": "12 rows", "tokens": 12}) == {"event": "12 rows", "tokens": 12}
