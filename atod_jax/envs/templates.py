"""Prompt templates by name: those of the environment, or one of a module of the user's own."""

import importlib

from atod_jax.envs.base import Environment, Template


def template_of(environment: Environment, name: str) -> Template:
    """The template of that name, or `TEMPLATE` of a module, or another constant: "module:NAME".

    Raises:
      ValueError: there is none.
    """
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
