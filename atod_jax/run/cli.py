"""The command line shared by the programs: flags, options, one-line errors, stopping on signals.

python -m atod_jax.train --config=FILE[:variant] --config.section.key=value --workdir=DIR
"""

import argparse
import contextlib
import errno
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
from ml_collections import ConfigDict

import atod_jax
from atod_jax import cluster, config
from atod_jax.envs.pool import BrokenEnvironment
from atod_jax.envs.processes import BrokenWorkers
from atod_jax.options import tree
from atod_jax.run import option_text
from atod_jax.run.cache import CACHE, use_cache
from atod_jax.texts import one_line, visible

EXPECTED = (
    ValueError,
    OSError,
    FloatingPointError,
    BrokenEnvironment,
    BrokenWorkers,
)
Flags = argparse.Namespace
SCRIPT = "atod"  # as pyproject.toml installs it; other scripts, and notebooks, are no programs
_FULL = "RESOURCE_EXHAUSTED"  # what XLA says of a device without room
_NO_ROOM = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)]
NO_ROOM = os.EX_IOERR  # exit code: the disk is full or read-only


class Program(NamedTuple):
    """One program that runs on a config."""

    name: str  # as in python -m atod_jax.<name>
    doc: str | None  # what it does, its first line is its summary; None under python -OO
    start: Callable[[Any, Flags], None]  # (options or None where there may be none, flags)
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    # the config where --config names none; None: there has to be one
    fallback: Callable[[Flags], ConfigDict | None] = lambda flags: None
    may_lack_config: bool = False  # starts with None in place of options
    needs_workdir: Callable[[Flags], bool] = lambda flags: False
    needs_model: bool = True  # whether the student has to be named


def run(program: Program, argv: Sequence[str] | None = None) -> None:
    """Parses the command line, checks the options and starts the program.

    An expected error ends it with one message (`short_errors`); set ATOD_TRACEBACK=1 to see where
    it came from.

    Args:
      argv: arguments without the program's name; None: those of this process.
    """
    for name in ("absl", "asyncio"):  # what Orbax logs with tracebacks it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with short_errors():
        flags, cfg = parse(program, sys.argv[1:] if argv is None else argv)
        cluster.start(
            coordinator=flags.coordinator,
            num_processes=flags.num_processes,
            process_id=flags.process_id,
            detect=flags.distributed,
        )
        if jax.config.read("jax_enable_x64"):
            raise ValueError(
                "JAX_ENABLE_X64 is set: draws of 64 bits are others, so a run could not be made "
                "again without it; unset it"
            )
        use_cache(flags.compilation_cache)
        try:
            with cluster.leaving_together():
                program.start(cfg, flags)
        except Interrupted as reason:
            print(f"stopped by {reason}; the same command goes on from here", file=sys.stderr)
            sys.exit(reason.exit_code)


def parse(program: Program, argv: Sequence[str]) -> tuple[Flags, config.Run | None]:
    """The flags of a program and the options of its config, overrides included.

    Raises:
      ValueError: an unknown flag or option, or a value that does not fit, with the fix.
      FileNotFoundError: no such config file.
    """
    rest, overrides = split(argv)
    parser = _parser(program)
    flags, left = parser.parse_known_args(rest)
    for name, value in vars(flags).items():
        setattr(flags, name, tree.expanded(value) if isinstance(value, str) else value)
    if flags.help:
        c = config.load(flags.config) if flags.config else config.base()
        override(c, overrides)
        flags_page = parser.format_help().replace("\noptions:\n", "\nflags:\n")
        print(f"{flags_page}\n{option_text.page(c)}")
        sys.exit(0)
    if left:
        raise ValueError(_unknown_flag(left[0], parser))
    if program.needs_workdir(flags) and not flags.workdir:
        raise ValueError("--workdir is missing: name a folder for this run, e.g. --workdir=runs/a")
    own = _own_config(program, flags)
    before = None if own is None else config.resolve(own, model_required=False)
    if flags.config is not None:
        c = config.load(flags.config)
    else:
        c = program.fallback(flags) if own is None else own
    if c is None and program.may_lack_config and not overrides:
        return flags, None
    if c is None:
        raise ValueError(
            "--config is missing: name a file or a shipped config, such as --config=quickstart"
        )
    override(c, overrides)
    cfg = config.resolve(c, model_required=program.needs_model)
    if before is not None:
        option_text.tell_changes(before, cfg)
    return flags, cfg


def _own_config(program: Program, flags: Flags) -> ConfigDict | None:
    """How the run that --checkpoint names is configured; None where that cannot be told.

    Raises:
      FileNotFoundError: there is nothing of that name.
      ValueError: its record cannot be read, and no --config takes its place.
    """
    if not getattr(flags, "checkpoint", ""):
        return None
    try:
        return program.fallback(flags)
    except ValueError:
        if flags.config is None:
            raise
        return None


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The flags of a command line, and its (path, text) overrides of options.

    Raises:
      ValueError: an option without a value.
    """
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        if not word.lstrip("-").startswith("config.") or not word.startswith("-"):
            rest.append(word)
            continue
        path, equals, text = word.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise ValueError(f"--config.{path} is given no value; write --config.{path}=VALUE")
        overrides.append((path, text))
    return rest, overrides


def override(c: ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets options by path, plug-ins first, since they bring options of their own.

    Raises:
      ValueError: an unknown path with the nearest one, or a text that does not read as its type.
    """
    names = dict(pair for pair in overrides if pair[0] in ("algorithm.name", "env.name"))
    for path, name in names.items():
        config.choose(c, path.partition(".")[0], name)
    known = config.catalogue(*config.named(c))
    for path, text in overrides:
        if path not in known:
            about = {p: leaf.about.meaning for p, leaf in known.items()}
            raise ValueError(f"--config.{tree.unknown(path, about, prefix='--config.')}")
        if path not in names:
            try:
                value = tree.from_text(text, known[path].type)
            except ValueError as error:
                raise ValueError(f"{path}={text!r}: {error}") from error
            c.update_from_flattened_dict({path: value})


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = Parser(
        program.name,
        program.doc,
        usage=f"python -m atod_jax.{program.name} [--config=FILE[:variant]] "
        "[--config.section.key=value ...] [flags]",
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", help="a config file with its variant, or the name of a shipped one")
    add("--workdir", default="", help="where this run keeps everything it writes")
    program.add_flags(parser)
    add(
        "--compilation_cache",
        help="folder of compiled programs, so that the next start is fast; empty: none; not given: "
        f"$JAX_COMPILATION_CACHE_DIR or {CACHE}",
    )
    add("--distributed", action="store_true", help="one of several processes; find out which")
    add("--coordinator", default="", help="HOST:PORT of process 0")
    add("--num_processes", type=int, default=0, help="how many processes there are")
    add("--process_id", type=int, default=-1, help="the number of this one")
    add("--help", "-h", action="store_true", help="this text, and every option")
    return parser


class Parser(argparse.ArgumentParser):
    """The flags of a program; one line in place of the usage where they are wrong."""

    def __init__(self, name: str, doc: str | None, **more: Any):
        form = argparse.RawDescriptionHelpFormatter
        prog = f"python -m atod_jax.{name}"
        super().__init__(prog=prog, description=doc, formatter_class=form, **more)
        version = f"atod_jax {atod_jax.__version__}"
        self.add_argument("--version", action="version", version=version)

    def read(self, arguments: Iterable[str] | None) -> argparse.Namespace:
        """Those given; None: those of this process."""
        return self.parse_args(None if arguments is None else list(arguments))

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the flags")


def _unknown_flag(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"{word!r} is not understood: flags begin with --, options with --config."
    name = word.lstrip("-").partition("=")[0]
    flags = {f"--{action.dest}": action.help or "" for action in parser._actions}
    options = {f"--config.{p}": leaf.about.meaning for p, leaf in config.catalogue().items()}
    same = [path for path in options if path.endswith(f".{name}")]
    match = same[0] if same else tree.nearest(f"--{name}", flags | options)
    return f"there is no flag --{name}" + (f"; did you mean {match}?" if match else "")


def command_line() -> str:
    """What was typed, to be copied; of a notebook no more than that it was one."""
    if os.path.basename(sys.argv[0]) == "ipykernel_launcher.py":
        return "a cell of a notebook"
    return shlex.join([*_program(), *sys.argv[1:]])


def command(name: str, *arguments: object) -> str:
    """The command line of another program, to be copied here."""
    if os.path.basename(sys.argv[0]) == SCRIPT:
        start = [SCRIPT]
    else:
        python = shutil.which("python")
        python = "python" if python and os.path.samefile(python, sys.executable) else _here()
        start = [python, "-m", "atod_jax"]
    return shlex.join([*start, name, *map(str, arguments)])


def _here() -> str:
    """This Python, from the current folder where it lies in it."""
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path


def _program() -> list[str]:
    """The words that start this program: `python -m MODULE`, or the name of a script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return [os.path.basename(sys.argv[0])]
    return [os.path.basename(sys.executable), "-m", spec.name.removesuffix(".__main__")]


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Expected errors, and memory that is full, as one message and exit code 2; a disk that is full
    or read-only has a code of its own."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output has enough
        sys.stderr.close()
        sys.exit(1)
    except EXPECTED as error:
        if os.environ.get("ATOD_TRACEBACK"):
            raise
        text = visible(str(error))
        reason = next((reason for reason in _NO_ROOM if reason in text), None)
        if reason:
            detail = one_line(text, longest=200)
            text = f"{reason} ({detail}); the same command goes on when there is room"
        print(f"error: {text}", file=sys.stderr)
        sys.exit(NO_ROOM if reason else 2)
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        kind = "a number is too large" if isinstance(error, OverflowError) else "out of memory"
        full = not isinstance(error, jax.errors.JaxRuntimeError) or _FULL in str(error)
        if not full or os.environ.get("ATOD_TRACEBACK"):
            raise
        print(
            f"error: {kind} ({one_line(str(error), longest=200)}); lower the largest sizes "
            "(packing.micro_rows, sampling.rows, sampling.max_new_tokens, lengths); train "
            "--dry_run says what a run needs",
            file=sys.stderr,
        )
        sys.exit(2)


class Interrupted(Exception):
    """Raised at a safe point after SIGINT or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Remembers SIGINT and SIGTERM; `check()` raises `Interrupted` where stopping loses nothing.

    A second signal falls back to the default behaviour, for a run that hangs.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self._number = number
        signal.signal(number, self._previous[number])
        print(f"\n{signal.Signals(number).name}: saving at the next safe point …", file=sys.stderr)

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived, here or in another process of the run."""
        numbers = [n for n in cluster.gather([self._number]) if n is not None]
        if numbers:
            raise Interrupted(numbers[0])
