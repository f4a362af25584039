"""Compiles the relay's hot modules with mypyc where a wheel is built and a C compiler is at hand, and packs
the documents beside `meshctl.manual`, which shows them without a network.

Everything works without: the modules are plain Python, and the tests run them as such. An editable install is
never compiled, because an edit has to take effect at once. See docs/decisions/compiled-modules.md.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

COMPILED = [
    "tunnel_proto/batch.py",
    "tunnel_proto/cipher.py",
    "tunnel_proto/events.py",
    "tunnel_proto/outbound.py",
    "tunnel_proto/mux.py",
    "tunnel_proto/pump.py",
    "tunnel_proto/rate.py",
    "tunnel_proto/resume.py",
    "tunnel_proto/session.py",
    "tunnel_proto/stats.py",
    "tunnel_proto/stream.py",
    "minigate/http.py",
    "minigate/relay.py",
    "qgate/capability/nlp/sentences.py",
    "qgate/capability/nlp/summary.py",
    "qgate/capability/nlp/words.py",
    "qgate/postgres/conversation.py",
    "qgate/postgres/fingerprint.py",
    "qgate/postgres/session.py",
    "qgate/postgres/tally.py",
]

DOCS = Path(__file__).resolve().parent / "docs"


def extensions() -> list[Extension]:
    """The extensions to build, none where they cannot be or should not."""
    if "bdist_wheel" not in sys.argv or "editable_wheel" in sys.argv:
        return []
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        print(f"no C compiler ({compiler}): the wheel will be pure Python")
        return []
    try:
        from mypyc.build import mypycify

        # Our own strict settings would fail here, where the libraries whose types they ask for are not; nor
        # should a fault in a module that is only imported keep these from being compiled.
        options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
        found = mypycify([*options, *COMPILED], debug_level="0")
    except (ImportError, SystemExit) as error:
        print(f"mypyc cannot compile here ({error}): the wheel will be pure Python")
        return []
    for extension in found:
        extension.optional = True
    return list(found)


class WithManual(build_py):
    """Puts docs/**/*.md into meshctl/manual; a checkout and an editable install read docs itself."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for page in sorted(DOCS.rglob("*.md")):
            goal = Path(self.build_lib, "meshctl", "manual", page.relative_to(DOCS))
            self.mkpath(str(goal.parent))
            self.copy_file(str(page), str(goal))


setup(ext_modules=extensions(), cmdclass={"build_py": WithManual})
