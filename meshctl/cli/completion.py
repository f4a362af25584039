"""`meshctl completion`: the script that a shell loads."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from meshctl.render import write
from meshctl.terminal import note


class Shell(StrEnum):
    """Shells that can complete meshctl's commands, options and the names of things at the gate."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


HOW = {
    Shell.BASH: "source <(meshctl completion bash)   (put it into ~/.bashrc)",
    Shell.ZSH: "source <(meshctl completion zsh)   (put it into ~/.zshrc, after compinit)",
    Shell.FISH: "meshctl completion fish > ~/.config/fish/completions/meshctl.fish",
}


def completion(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print the completion script of a shell; how to load it is said on standard error."""
    from typer._completion_shared import get_completion_script

    write(get_completion_script(prog_name="meshctl", complete_var="_MESHCTL_COMPLETE", shell=shell.value))
    note(HOW[shell])
