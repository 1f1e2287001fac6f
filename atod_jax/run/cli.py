"""The command line shared by the entry points: flags, one-line errors, stopping on signals."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from atod_jax import cluster
from atod_jax import config as config_lib
from atod_jax.envs.pool import BrokenEnvironment
from atod_jax.envs.processes import BrokenWorkers

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/<file>.py[:variant]")
_WORKDIR = flags.DEFINE_string("workdir", "", "where this run keeps everything it writes")

EXPECTED = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    FloatingPointError,
    NotADirectoryError,
    BrokenEnvironment,
    BrokenWorkers,
)


_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one of several processes; find out which")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("num_processes", 0, "how many processes there are")
_PROCESS = flags.DEFINE_integer("process_id", -1, "the number of this one")


def run(
    main: Callable[[Any, str], None],
    *,
    workdir_required: bool | Callable[[], bool],
    config_required: bool = True,
    model_required: bool = True,
    complete: Callable[[list[str]], list[str]] = list,
) -> None:
    """Parses the command line, checks the config and calls `main(cfg, workdir)`.

    A `workdir_required` that is a function is asked once the flags are read. `complete` may add to
    the arguments before they are read. Without `config_required`, cfg is None where no --config is
    given. An expected error ends the program with exit code 2 and one message; set
    ATOD_TRACEBACK=1 to see where it came from.
    """
    with _short_errors():
        sys.argv[1:] = complete(sys.argv[1:])
        _parse()
        cfg = None
        if config_required or _CONFIG.value is not None:
            cfg = _config(workdir_required() if callable(workdir_required) else workdir_required)
            config_lib.validate(cfg, model_required=model_required)
        cluster.start(
            coordinator=_COORDINATOR.value,
            num_processes=_PROCESSES.value,
            process_id=_PROCESS.value,
            detect=_DISTRIBUTED.value,
        )
        try:
            with cluster.leaving_together():
                main(cfg, _WORKDIR.value)
        except Interrupted as reason:
            print(f"stopped by {reason}; the same command goes on from here", file=sys.stderr)
            sys.exit(reason.exit_code)


def _parse() -> None:
    try:
        rest = flags.FLAGS(sys.argv)
    except AttributeError as error:  # ml_collections: an override of a key that does not exist
        message = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        raise ValueError(f"unknown config key: {message}") from error
    except (flags.Error, TypeError) as error:
        raise ValueError(_without_traceback(str(error))) from error
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; options look like --config.seed=1")


def _without_traceback(message: str) -> str:
    """What a message that quotes a whole traceback (as ml_collections' do) says in the end."""
    if "Traceback" not in message:
        return message
    flag, last = message.split(":", 1)[0], message.strip().splitlines()[-1]
    return f"{flag}: {last.partition(': ')[2] or last}"


def _config(workdir_required: bool) -> ConfigDict:
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a file such as --config=configs/quickstart.py")
    if workdir_required and not _WORKDIR.value:
        raise ValueError("--workdir is missing: name a folder for this run, e.g. --workdir=runs/a")
    try:
        return ConfigDict(_CONFIG.value)
    except OSError as error:
        raise FileNotFoundError(
            f"--config={flags.FLAGS['config'].config_filename}: no such config file"
        ) from error


@contextlib.contextmanager
def _short_errors() -> Iterator[None]:
    try:
        yield
    except EXPECTED as error:
        if os.environ.get("ATOD_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
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


def to_json(cfg: ConfigDict) -> str:
    """The resolved config as stable, readable JSON."""
    return json.dumps(cfg.to_dict(), indent=2, sort_keys=True)
