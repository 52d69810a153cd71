"""`pbrl completion bash` and `pbrl completion zsh`: what a shell reads to complete verbs, options and configs."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence

from pbrl_jax.core.errors import lookup
from pbrl_jax.run.config_file import shipped_configs

BASH = """_pbrl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" options=""
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{verbs} --version --help" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$options" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _pbrl pbrl
"""
SHELLS = {"bash": BASH, "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH}
"""Shell -> the script; zsh reads bash's."""


def options_of(verb: Callable[[Sequence[str]], None]) -> list[str]:
    """The options that a verb's help names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        verb(["--help"])
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.getvalue())))


def main(shell: str, verbs: Mapping[str, Callable[[Sequence[str]], None]]) -> None:
    """Print the script of `shell`."""
    script = lookup(SHELLS, shell, "shell")
    configs = " ".join(sorted(shipped_configs()))
    cases = []
    for name, verb in verbs.items():
        options = options_of(verb)
        names = [configs] if "--devices" in options or "--topology" in options else []
        cases.append(f'    {name}) options="{" ".join([*options, *names])}" ;;')
    print(script.format(verbs=" ".join(verbs), cases="\n".join(cases)), end="")
