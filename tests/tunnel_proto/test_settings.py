"""A settings file is understood whole, or refused with the line and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_proto.errors import ConfigError
from tunnel_proto.settings import dump, load, loads, options, reference


@dataclass(frozen=True, slots=True)
class Listen:
    host: str = "127.0.0.1"
    """Where to listen."""
    port: int = field(default=11438, metadata={"description": "TCP port.", "minimum": 0, "maximum": 65535})
    names: tuple[str, ...] = ()
    """Other names
    of this listener."""

    def __post_init__(self) -> None:
        if self.host == "nowhere":
            raise ValueError("nowhere is no address")


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    """What it is called."""
    state: Path = Path("state")
    dsn: str | None = field(default=None, metadata={"secret": True, "description": "Where the store is."})
    kind: Literal["small", "large"] = "small"
    wait: float = field(default=1.5, metadata={"unit": "s", "description": "Patience.", "reload": True})
    loud: bool = False
    listen: Listen = field(default_factory=Listen)
    more: tuple[Listen, ...] = ()


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LISTENS = st.builds(
    Listen,
    host=TEXT.filter(lambda host: host != "nowhere"),
    port=st.integers(0, 65535),
    names=st.lists(TEXT, max_size=3).map(tuple),
)
PROGRAMS = st.builds(
    Program,
    name=TEXT,
    state=TEXT.filter(lambda text: bool(text) and "\0" not in text).map(Path),
    dsn=st.none() | TEXT,
    kind=st.sampled_from(["small", "large"]),
    wait=st.floats(allow_nan=False),
    loud=st.booleans(),
    listen=LISTENS,
    more=st.lists(LISTENS, max_size=2).map(tuple),
)


@given(PROGRAMS)
def test_what_is_dumped_loads_back_equal(program: Program) -> None:
    assert loads(dump(program), Program) == program


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "program.toml"
    path.write_text(
        'name = "one"\nstate = "here"\nwait = 2\n[listen]\nport = 1\nnames = ["a", "b"]\n[[more]]\nport = 2\n'
    )
    program = load(path, Program)
    assert program.state == tmp_path / "here"
    assert program.wait == 2.0
    assert program.listen == Listen(port=1, names=("a", "b"))
    assert program.more == (Listen(port=2),)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('nme = "x"', '1: unknown key "nme" at the top; did you mean "name"?', 'write "name"'),
        (
            'name = "x"\n[listen]\nprot = 1',
            '3: unknown key "prot" in [listen]; did you mean "port"?',
            'write "port"',
        ),
        (
            'name = "x"\nport = 1',
            '2: unknown key "port" at the top; did you mean "port" of [listen]?',
            'write "port" under [listen]',
        ),
        ('name = "x"\nzzz = 1', '2: unknown key "zzz" at the top', "remove it; known here: name, state"),
        ("name = 1", "1: name expected text, got an integer (1)", "correct name"),
        ('name = "x"\nloud = 1', "2: loud expected a boolean, got an integer (1)", "correct loud"),
        ('name = "x"\nwait = true', "2: wait expected a number, got a boolean (true)", "correct wait"),
        ('name = "x"\nlisten = 4', "2: listen expected a table, got an integer (4)", "correct listen"),
        ('name = "x"\nkind = "odd"', '2: kind must be one of "small", "large", not "odd"', "correct kind"),
        ('name = "x"\n[listen]\nport = 65536', "3: listen.port must be at most 65535", "correct listen.port"),
        ('name = "x"\nlisten.port = -1', "2: listen.port must be at least 0", "correct listen.port"),
        ('name = "x"\nlisten.names = "a"', "2: listen.names expected a list of text", "correct"),
        ('name = "x"\nlisten.names = ["a", 2]', "2: listen.names.1 expected text", "correct"),
        ('name = "x"\n[listen]\nhost = "nowhere"', "2: nowhere is no address", "correct"),
        ('name = "x"\n[[more]]\n[[more]]\nport = "a"', "4: more.1.port expected an integer", "correct"),
        ("", 'p.toml: lacks "name"', "add a line: name = ..."),
        ("name = ", "not valid TOML", "correct p.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_remedy(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, Program, source="p.toml")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        loads('name = "x"\ndsn = ["hunter2"]', Program)
    assert "hunter2" not in caught.value.message


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml", Program)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path, Program)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin.toml", Program)


def test_defaults_are_shown_commented_out_and_secrets_can_be_hidden() -> None:
    text = dump(Program(name="x", dsn="hunter2", wait=9.0), redact=True)
    assert "# loud = false" in text
    assert "\nwait = 9.0" in text
    assert "hunter2" not in text
    assert "# Patience. (a number, s; applied on SIGHUP)" in text


def test_descriptions_come_from_metadata_and_from_the_text_under_a_field() -> None:
    described = {one.path: one.description for one in options(Program)}
    assert described["listen.port"] == "TCP port."
    assert described["listen.names"] == "Other names of this listener."
    page = reference(Program, "Program")
    assert "| `name` | text | required | What it is called. |" in page
    assert "### `[listen]`" in page
