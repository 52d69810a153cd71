"""`pbrl completion bash` and `pbrl completion zsh`: what a shell reads to complete verbs, options and configs."""

import dataclasses
from collections.abc import Mapping

from pbrl_jax.run.config_file import shipped_configs
from pbrl_jax.run.options import flag

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


def main(shell: str, verbs: Mapping[str, type]) -> None:
    """Print the script of `shell`, for verbs with these classes of options."""
    configs, cases = " ".join(sorted(shipped_configs())), []
    for name, kind in verbs.items():
        fields = dataclasses.fields(kind)
        words = [flag(field.name) for field in fields if "place" not in field.metadata]
        words += [configs] * any(field.name == "config" for field in fields)
        cases.append(f'    {name}) options="{" ".join(words)}" ;;')
    print(SHELLS[shell].format(verbs=" ".join(verbs), cases="\n".join(cases)), end="")
