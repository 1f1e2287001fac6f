"""Prompt templates by name: those of the environment, or one of a module of the user's own."""

import functools
import importlib
from collections.abc import Callable, Sequence

from atod_jax.envs.base import Environment, Projection, Template
from atod_jax.envs.tagged import without_quotes

RULES = ("answer", "anywhere")  # where a response is searched for an action


def template_of(environment: Environment, name: str, *, actions: str = "answer") -> Template:
    """The template of that name, or `TEMPLATE` of a module, or another constant: "module:NAME".

    Args:
      environment: has templates of its own.
      name: which one.
      actions: of RULES; "answer": an action quoted inside the thinking is none, "anywhere": the
        template sees the thinking as well.

    Raises:
      ValueError: there is none.
    """
    template = _named(environment, name)
    if actions == "anywhere":
        return template
    return template._replace(project=functools.partial(_project_answer, template.project))


def _project_answer(
    project: Callable[[str, Sequence[str]], Projection], response: str, commands: Sequence[str]
) -> Projection:
    return project(without_quotes(response), commands)


def _named(environment: Environment, name: str) -> Template:
    if name in environment.templates:
        return environment.templates[name]
    module, _, constant = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), constant or "TEMPLATE")
    except Exception as error:
        raise ValueError(
            f"env.template={name!r}: the environment has {', '.join(environment.templates)}, and "
            f"{module} with a {constant or 'TEMPLATE'} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(found, Template):
        raise ValueError(f"env.template={name!r}: {found!r} is no envs.base.Template")
    return found
