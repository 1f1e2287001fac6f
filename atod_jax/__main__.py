"""The programs of the package: `atod PROGRAM ...`, or `python -m atod_jax PROGRAM ...`."""

import ast
import importlib
import os
import sys
from pathlib import Path

import atod_jax

PROGRAMS = (
    "train", "evaluate", "compare", "view", "signals", "study", "play", "replay", "export",
    "doctor", "bench",
)  # fmt: skip
WITHOUT_OPTIONS = ("bench", "compare", "study", "view")  # they configure no run


def main(argv: list[str] | None = None) -> None:
    """Starts a program, or lists them.

    Args:
      argv: the program and its arguments; None: those of this process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in PROGRAMS:
        see_folder()
        start(name, rest)
    elif name in ("", "-h", "--help"):
        print(listing())
    elif name in ("-V", "--version"):
        print(f"atod_jax {atod_jax.__version__}")
    else:
        print(f"error: there is no program {name!r}\n{listing()}", file=sys.stderr)
        sys.exit(2)


def start(name: str, arguments: list[str]) -> None:
    """Hands the command line to a program, which is imported only now: JAX takes seconds."""
    module = importlib.import_module(f"atod_jax.{name}")
    if name in WITHOUT_OPTIONS:
        module.main(arguments)
        return
    from atod_jax.run import cli

    cli.run(module.PROGRAM, arguments)


def see_folder() -> None:
    """Plug-ins in the current folder can be named, as with `python -m`; installed modules win."""
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.append(here)


def listing() -> str:
    """The programs with what they do."""
    lines = ["usage: atod PROGRAM [--help] ..., or python -m atod_jax.PROGRAM ...", ""]
    return "\n".join([*lines, *(f"  {name:<10}{summary(name)}" for name in PROGRAMS)])


def summary(name: str) -> str:
    """The first line of a program's docstring; read, since an import takes seconds."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
