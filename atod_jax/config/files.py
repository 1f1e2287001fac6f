"""Config files: those that are shipped by name, any other by path, with variants behind a colon.

quickstart    configs/household.py:algo=grpo,steps=20    ~/my/experiment.py:big

A file is found by its path and never imported by name, so a `configs` package of somebody else's
is not in the way.
"""

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from atod_jax.options import tree

T = TypeVar("T")
PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """Where the shipped configs are: in an installed package, or beside it in a clone."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def shipped() -> list[str]:
    """The names of the shipped configs."""
    return sorted(
        path.stem
        for path in shipped_folder().glob("[!_]*.py")
        if "def get_config(" in path.read_text(encoding="utf-8")
    )


def load(name: str) -> ConfigDict:
    """The config of "FILE[:variant]", where FILE is a path or the name of a shipped config.

    Raises:
      FileNotFoundError: there is no such file, with the nearest shipped name.
      ValueError: it defines no config, has no such variant, or fails, with the line.
    """
    return made_by(
        name,
        "get_config",
        kind=ConfigDict,
        otherwise="let it return atod_jax.config.base(), changed",
    )


def made_by(name: str, function: str, *, kind: type[T], otherwise: str) -> T:
    """What a function of a config file returns for its variant; `otherwise` says what to do where
    that is something else.

    Raises:
      FileNotFoundError, ValueError: see `load`.
    """
    try:
        made = _call(name, function)
        if isinstance(made, kind):
            return made
        raise ValueError(f"--config={name}: {function}() returns {made!r}; {otherwise}")
    except (ValueError, FileNotFoundError):
        raise
    except (Exception, SystemExit) as error:  # whatever the file does
        path = find(name.partition(":")[0])
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if Path(f.filename).resolve() == path.resolve()
        ]
        line = frames[-1].lineno if frames else getattr(error, "lineno", "?")
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--config={name}: {path}, line {line}: {type(error).__name__}: {said}"
        ) from error


def _call(name: str, function: str) -> Any:
    file, colon, variant = name.partition(":")
    module = _imported(find(file))
    if not hasattr(module, function):
        raise ValueError(f"--config={file}: the file defines no {function}()")
    call = getattr(module, function)
    if colon and not inspect.signature(call).parameters:
        raise ValueError(f"--config={name}: the file has no variants; leave out ':{variant}'")
    return call(variant) if colon else call()


def find(file: str) -> Path:
    """The file of a config; a path is taken first, then the shipped ones by name.

    Raises:
      FileNotFoundError: there is none.
    """
    if (path := Path(tree.expanded(file))).is_file():
        return path
    bare = Path(file).stem
    if file in (bare, f"{bare}.py", f"configs/{bare}.py") and bare in shipped():
        return shipped_folder() / f"{bare}.py"
    near = tree.nearest(bare, dict.fromkeys(shipped(), ""))
    hint = f" (did you mean {near!r}?)" if near else ""
    raise FileNotFoundError(
        f"--config={file}: no such file{hint}; shipped configs: {', '.join(shipped())}"
    )


def _imported(path: Path) -> ModuleType:
    """The module of a file, as part of a package of its folder, so that it can import the files
    beside it ("from . import household"). Read anew each time: people edit configs."""
    package = f"_configs_{abs(hash(path.resolve().parent))}"
    if package not in sys.modules:
        folder = ModuleType(package)
        folder.__path__ = [str(path.resolve().parent)]
        sys.modules[package] = folder
    name = f"{package}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def parse_arg(arg: str | None, **options: Any) -> ConfigDict:
    """Reads `configs/file.py:key=value,flag` into a ConfigDict of `options`.

    Raises:
      ValueError: an unknown key, with the nearest known one, or a value of another type.
    """
    result = ConfigDict(options)
    for item in filter(None, (arg or "").split(",")):
        key, _, value = item.partition("=")
        if key not in options:
            hint = tree.nearest(key, dict.fromkeys(options, ""))
            raise ValueError(
                f"config variant {key!r} is unknown"
                f"{f' (did you mean {hint!r}?)' if hint else ''}; "
                f"choose from {', '.join(sorted(options))}"
            )
        default = options[key]
        try:
            flag = isinstance(default, bool) and not value
            result[key] = True if flag else tree.from_text(value, type(default))
        except ValueError as error:
            raise ValueError(f"config variant {key}={value!r}: {error}") from error
    return result
