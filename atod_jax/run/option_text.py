"""Options for people: the page behind --help, and what an override has changed."""

import sys
import textwrap

from ml_collections import ConfigDict

from atod_jax import config
from atod_jax.options import tree

WIDTH, INDENT = 100, 44


def page(c: ConfigDict) -> str:
    """Every option with its present value and its meaning, section by section."""
    values = tree.flatten(c.to_dict())
    lines, section = ["options, as --config.NAME=VALUE (with their values now):"], None
    for path, leaf in config.catalogue(*config.named(c)).items():
        group = path.rpartition(".")[0]
        if group != section:
            lines.append("")
            section = group
        rules = "; ".join(check.rule for check in leaf.about.checks)
        meaning = leaf.about.meaning + (f" ({rules})" if rules else "")
        lines.append(_line(f"  {path} = {tree.show(values[path])}", meaning))
    return "\n".join(lines)


def _line(name: str, meaning: str) -> str:
    wrapped = textwrap.wrap(meaning, WIDTH - INDENT) or [""]
    first = [f"{name:<{INDENT}}{wrapped[0]}"] if len(name) < INDENT else [name, wrapped[0]]
    if len(name) >= INDENT:
        first[1] = " " * INDENT + first[1]
    return "\n".join([*first, *(" " * INDENT + more for more in wrapped[1:])]).rstrip()


def tell_changes(before: config.Run, now: config.Run) -> None:
    """Prints the options that differ from the run's own."""
    old = {leaf.path: leaf.value for leaf in config.leaves(before)}
    for leaf in config.leaves(now):
        if old.get(leaf.path) != leaf.value:
            was = tree.show(old[leaf.path]) if leaf.path in old else "not there"
            print(f"{leaf.path}={tree.show(leaf.value)} (the run's own: {was})", file=sys.stderr)
