"""Write the reference page of all commands, docs/commands.md, from click itself.

python analyses/commands.py
"""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli import main as repsim

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"

COMPLETION = """\
Every command takes `--help`; those that make something take `--json`, which says what was made, and `--quiet`.
Bash completes commands, options and names of networks after `eval "$(_REPSIM_COMPLETE=bash_source repsim)"`, say in
`~/.bashrc`; zsh and fish likewise, with `zsh_source` and `_REPSIM_COMPLETE=fish_source repsim | source`."""


def page() -> str:
    """The help of every command, as click prints it at 100 columns."""
    parts = ["# Commands", "", "Written by `analyses/commands.py` from the commands themselves.", "", COMPLETION, ""]
    with click.Context(repsim, info_name="repsim", **repsim.context_settings) as parent:
        for name in repsim.list_commands(parent):
            command = repsim.get_command(parent, name)
            with click.Context(
                command, info_name=name, parent=parent, terminal_width=100, max_content_width=100
            ) as ctx:
                parts += [f"## repsim {name}", "", "```text", command.get_help(ctx), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
