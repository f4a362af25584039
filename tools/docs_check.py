"""Part of `make check`: the documents say nothing that is not so.

Each rule is a function that yields one line a problem, with file and line number. Only files that git tracks
(or would) are looked at.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

_LINES_MAX = 600  # past this a file is two nouns
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~)")
_COMMAND = re.compile(r"(?:^|[`$ ])meshctl((?: [a-z][a-z-]*)+)")
_SETTING = re.compile(r"`(listen|store|keys|control|metrics|log|tunnel|postgres|gate)\.([a-z_]+)`")
_PATH_IN_TEXT = re.compile(
    r"`((?:tunnel_proto|minigate|qgate|meshctl|tests|tools|docs|conf\.example)/[\w./*-]+)`"
)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
# Paths and names of the place a change was written in have no business in a public repository. They are
# spelled in pieces, so that this file does not match itself.
_FOREIGN = re.compile(
    "|".join(["/wo" + "rk/", "/fa" + r"rm\b", "fa" + "rm-", r"\.lib" + "rary/", "/ro" + r"ot/\."])
)
_GENERATED = ("docs/reference/",)


def tracked() -> list[Path]:
    """Return every file that is in git or would be, relative to the root."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(name) for name in sorted(set(done.stdout.split("\0"))) if name and (ROOT / name).is_file()]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a markdown text outside its fences."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line.lstrip()):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for _, line in prose(text):
        if match := _HEADING.match(line):
            slug = re.sub(r"[^\w\- ]", "", match[1].lower()).strip().replace(" ", "-")
            number = 0
            while (name := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(name)
    return found


def links(pages: dict[Path, str]) -> Iterator[str]:
    """Every relative link leads to a file, and to a heading of it where it names one."""
    for page, text in pages.items():
        for number, line in prose(text):
            for target in _LINK.findall(line):
                if re.match(r"[a-z]+:", target):
                    continue
                path, _, anchor = target.partition("#")
                goal = (ROOT / page.parent / path).resolve() if path else ROOT / page
                if not goal.exists():
                    yield f"{page}:{number}: the link to {target} leads nowhere"
                elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text()):
                    yield f"{page}:{number}: {path or page} has no heading #{anchor}"


def named(pages: dict[Path, str]) -> Iterator[str]:
    """Every page under docs/ is linked from the README or from another page, so that a reader can find it."""
    linked: set[Path] = set()
    for page, text in pages.items():
        for target in _LINK.findall(text):
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                goal = (ROOT / page.parent / path).resolve()
                if goal != ROOT / page:
                    linked.add(goal)
    for page in pages:
        if page.parts[0] == "docs" and ROOT / page not in linked:
            yield f"{page}: no page links to it"


def paths_exist(pages: dict[Path, str]) -> Iterator[str]:
    """A file that a page names in code type exists."""
    for page, text in pages.items():
        for number, line in prose(text):
            for path in _PATH_IN_TEXT.findall(line):
                if "*" in path or (ROOT / path).exists() or (ROOT / f"{path}.py").exists():
                    continue
                yield f"{page}:{number}: {path} does not exist"


def commands(pages: dict[Path, str]) -> Iterator[str]:
    """A `meshctl ...` that a page shows is a command that there is."""
    tree = _command_tree()
    if tree is None:
        return
    for page, text in pages.items():
        for number, line in enumerate(text.splitlines(), 1):
            for words in _COMMAND.findall(line):
                level: dict[str, object] | None = tree
                for word in words.split():
                    if not level:
                        break
                    if word not in level:
                        if level is tree and not line.lstrip().startswith(("meshctl", "$", "#", "`")):
                            break  # prose: "meshctl shows ..."
                        yield f"{page}:{number}: there is no command `meshctl{words}` ({word})"
                        break
                    below = level[word]
                    level = below if isinstance(below, dict) else None


def _command_tree() -> dict[str, object] | None:
    try:
        import typer.main

        from meshctl.__main__ import app
    except ImportError:
        return None

    def tree(command: object) -> dict[str, object]:
        below = getattr(command, "commands", None) or {}
        return {name: tree(sub) for name, sub in below.items()}

    return tree(typer.main.get_command(app))


def settings(pages: dict[Path, str]) -> Iterator[str]:
    """A `table.key` that a page names is a setting of one of the programs."""
    known = _known_settings()
    if not known:
        return
    for page, text in pages.items():
        for number, line in enumerate(text.splitlines(), 1):
            for table, key in _SETTING.findall(line):
                if f"{table}.{key}" not in known:
                    yield f"{page}:{number}: there is no setting {table}.{key}"


def _known_settings() -> set[str]:
    from tunnel_proto.settings import options

    found = {one.path for cls in _settings_classes().values() for one in options(cls)}
    try:
        from qgate.governance.registry import SETTINGS
    except ImportError:
        return found
    return found | set(SETTINGS)


def _settings_classes() -> dict[str, type]:
    classes: dict[str, type] = {}
    try:
        from qgate.settings import GateSettings

        classes["qgate"] = GateSettings
    except ImportError:
        pass
    try:
        from minigate.settings import MinigateSettings

        classes["minigate"] = MinigateSettings
    except ImportError:
        pass
    return classes


def examples() -> Iterator[str]:
    """Each file of conf.example loads, and names every option of its program."""
    from tunnel_proto.errors import MeshError
    from tunnel_proto.settings import load, options

    for name, cls in _settings_classes().items():
        path = ROOT / "conf.example" / f"{name}.toml"
        if not path.exists():
            yield f"conf.example/{name}.toml: missing"
            continue
        try:
            load(path, cls)
        except MeshError as error:
            yield f"conf.example/{name}.toml: does not load: {error}"
            continue
        text = path.read_text()
        for one in options(cls):
            if not re.search(rf"^#?\s*{one.name}\s*=", text, re.MULTILINE):
                yield f"conf.example/{name}.toml: {one.path} is not in it"
    for path in sorted((ROOT / "conf.example").glob("*.toml")):
        try:
            tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            yield f"conf.example/{path.name}: {error}"


def lengths(files: list[Path]) -> Iterator[str]:
    """No Python file is longer than it may be."""
    for path in files:
        if path.suffix == ".py":
            count = len((ROOT / path).read_text().splitlines())
            if count > _LINES_MAX:
                yield f"{path}: {count} lines; past {_LINES_MAX} it is two nouns"


def foreign(files: list[Path]) -> Iterator[str]:
    """Nothing names the machine or the tools that a change was written with."""
    for path in files:
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := _FOREIGN.search(line):
                yield f"{path}:{number}: {match[0]!r} names a place outside this repository"


def main() -> int:
    """Check everything; print the problems and return 1 if there are any."""
    files = tracked()
    pages = {
        path: (ROOT / path).read_text()
        for path in files
        if path.suffix == ".md" and (path.parts[0] == "docs" or len(path.parts) == 1)
    }
    written = {path: text for path, text in pages.items() if not str(path).startswith(_GENERATED)}
    problems = [
        *links(pages),
        *named(pages),
        *paths_exist(written),
        *commands(written),
        *settings(written),
        *examples(),
        *lengths(files),
        *foreign(files),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(pages)} pages, {len(files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
