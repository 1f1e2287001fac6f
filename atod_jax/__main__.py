"""The programs of the package: `python -m atod_jax PROGRAM ...`, or `atod PROGRAM ...`."""

import importlib
import sys

import atod_jax
from atod_jax.run import cli

PROGRAMS = ("train", "evaluate", "compare", "play", "replay", "export", "doctor")


def main(argv: list[str] | None = None) -> None:
    """Starts a program, or lists them."""
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in PROGRAMS:
        module = importlib.import_module(f"atod_jax.{name}")
        if name == "compare":  # reads finished runs only, so it has no options
            module.main(rest)
        else:
            cli.run(module.PROGRAM, rest)
    elif name in ("", "-h", "--help"):
        print(listing())
    elif name == "--version":
        print(f"atod_jax {atod_jax.__version__}")
    else:
        print(f"error: there is no program {name!r}\n{listing()}", file=sys.stderr)
        sys.exit(2)


def listing() -> str:
    """The programs with what they do."""
    lines = ["usage: atod PROGRAM [--help] ..., or python -m atod_jax.PROGRAM ...", ""]
    for name in PROGRAMS:
        doc = importlib.import_module(f"atod_jax.{name}").__doc__ or ""
        lines.append(f"  {name:<10}{doc.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
