"""Completion of commands and options in a shell: `untied --print-completion bash`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from untied.errors import UntiedError

__all__ = ["completion"]

BASH = """\
# untied: completion for bash. Put into ~/.bashrc:  eval "$(untied --print-completion bash)"
_untied() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    if [[ "$word" != -* ]]; then COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _untied untied
"""
CASE = """\
        {name}) COMPREPLY=($(compgen -W "{flags}" -- "$word")) ;;"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + BASH.replace("for bash", "for zsh").replace("bashrc", "zshrc")
ZSH = ZSH.replace("--print-completion bash", "--print-completion zsh")
FISH_HEAD = "# untied: completion for fish. Put it into ~/.config/fish/completions/untied.fish"
SHELLS = ("bash", "zsh", "fish")


def completion(words: list[str], commands: Iterable[str], help_of: Callable[[list[str]], str]) -> str:
    """The script for a shell.

    Args:
        words: its name. commands: the first words. help_of: what a command prints for --help.

    Raises:
        UntiedError: another shell.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise UntiedError(f"--print-completion {' '.join(words) or '(nothing)'}: possible are {', '.join(SHELLS)}")
    flags = {name: flags_in(help_of([name])) for name in commands}
    if words[0] == "fish":
        lines = [FISH_HEAD, "complete -c untied -f"]
        for name, own in flags.items():
            lines.append(f"complete -c untied -n __fish_use_subcommand -a {name}")
            lines += [f"complete -c untied -n '__fish_seen_subcommand_from {name}' -l {f[2:]} -F" for f in own]
        return "\n".join(lines)
    cases = "\n".join(CASE.format(name=name, flags=" ".join(own)) for name, own in flags.items() if own)
    return (ZSH if words[0] == "zsh" else BASH).format(commands=" ".join(commands), cases=cases).rstrip()


def flags_in(text: str) -> list[str]:
    """The options that stand first in a line, or in a box, of a help text."""
    found = re.findall(r"(?:^|[│|])\s*(?:-h, )?(--[a-z][\w.-]*)", text, flags=re.MULTILINE)
    return list(dict.fromkeys([*found, "--set", "--config"])) if found else []
