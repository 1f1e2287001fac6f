"""Between a config, which is a ConfigDict or JSON, and the typed options of a run."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from atod_jax.algorithms.base import Algorithm
from atod_jax.config.sections import Run
from atod_jax.envs.base import Environment
from atod_jax.envs.templates import template_of
from atod_jax.options import plugins, tree
from atod_jax.options.plugins import ALGORITHMS, ENVIRONMENTS

GROUPS = {"algorithm": ALGORITHMS, "env": ENVIRONMENTS}  # sections with those of plug-ins in them


def base(*, algorithm: str = "atod", env: str = "alfworld") -> ConfigDict:
    """All options with their defaults, for a config file to change.

    Args:
      algorithm: its name; a module of yours gets its options as `algorithm.<last part>`.
      env: likewise.

    Raises:
      ValueError: there is no such plug-in.
    """
    plain = tree.to_plain(Run())
    for group, kind in GROUPS.items():
        del plain[group]["settings"]
        for name, plugin in plugins.shipped(kind).items():
            plain[group][name] = tree.to_plain(plugin.Config())
    c = ConfigDict(plain)
    choose(c, "algorithm", algorithm)
    choose(c, "env", env)
    return c


def choose(c: ConfigDict, group: str, name: str) -> None:
    """Names the plug-in of a group ("algorithm" or "env"), whose options `c` gets if it lacks them.

    An environment that has not the template or the splits that `c` names gets its own first ones.

    Raises:
      ValueError: there is no such plug-in.
    """
    own, options = plugins.key(name), _section(c, group)
    if own not in options or own != name != options.name:  # one of yours may be called as ours
        options[own] = ConfigDict(tree.to_plain(_default(group, name)))
    options.name = name
    if group == "env":
        plugin: Environment = plugins.load(ENVIRONMENTS, name)
        if options.template == Run().env.template and options.template not in plugin.templates:
            options.template = next(iter(plugin.templates))
        for section, option in ((options, "train_split"), (_section(c, "eval"), "split")):
            if section[option] not in plugin.splits:
                section[option] = plugin.splits[0]


def _section(c: ConfigDict, name: str) -> Any:
    """A section of a config; by its type it could be anything that an option can be."""
    return c[name]


def named(c: ConfigDict) -> tuple[str, str]:
    """The names of a config's algorithm and environment."""
    return _section(c, "algorithm").name, _section(c, "env").name


def resolve(c: ConfigDict | Mapping[str, Any], *, model_required: bool = True) -> Run:
    """The typed options of a config, checked as far as nothing has to be loaded.

    Args:
      c: from `base`, or the same as plain values; what is missing keeps its default.
      model_required: whether the student has to be named.

    Raises:
      ValueError: a line per problem: key, value and fix.
    """
    values = c.to_dict() if isinstance(c, ConfigDict) else dict(c)
    known = {path: leaf.about.meaning for path, leaf in catalogue().items()}
    problems, settings = [], {}
    for group in GROUPS:
        try:
            values[group], settings[group] = _divided(group, values.get(group, {}), known)
        except ValueError as error:
            problems += str(error).splitlines()
            values.pop(group, None)
    try:
        run = tree.parse(Run(), values, known=known)
        for group, own in settings.items():
            run = _with_settings(run, group, own)
        problems += [] if problems else _across(run, model_required)
    except ValueError as error:
        problems += str(error).splitlines()
        run = Run()
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError("invalid config:\n" + "\n".join(f"  {p}" for p in problems))
    return run


def _divided(
    group: str, values: Mapping[str, Any], known: Mapping[str, str]
) -> tuple[dict[str, Any], Any]:
    """What a group holds for all plug-ins, and the options of the one it names.

    Those of the others are checked as well: a typo in them would wait for its day.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{group}={values!r}: is a group of options; set one of them")
    name = values.get("name", getattr(Run(), group).name)
    if not isinstance(name, str):
        raise ValueError(f"{group}.name={name!r}: must be a word")
    own, problems = plugins.key(name), []
    defaults = {k: p.Config() for k, p in plugins.shipped(GROUPS[group]).items()}
    defaults[own] = _default(group, name)
    for key in defaults.keys() & values.keys():
        try:
            defaults[key] = tree.parse(defaults[key], values[key], f"{group}.{key}.", known=known)
        except ValueError as error:
            problems += str(error).splitlines()
    if problems:
        raise ValueError("\n".join(problems))
    return {k: v for k, v in values.items() if k not in defaults}, defaults[own]


def _default(group: str, name: str) -> Any:
    """The options of a plug-in, their defaults in the types that they declare.

    Raises:
      ValueError: there is no such plug-in, or its Config is not one.
    """
    plugin, own = plugins.load(GROUPS[group], name), plugins.key(name)
    if own in {field.name for field in dataclasses.fields(getattr(Run(), group))}:
        raise ValueError(f"{group}.name={name!r}: {group}.{own} is an option; rename the module")
    try:
        config = plugin.Config()
        return tree.parse(config, tree.to_plain(config), f"{group}.{own}.")
    except Exception as error:
        raise ValueError(
            f"{group}.name={name!r}: its Config must be a frozen dataclass of numbers, words, "
            f"booleans and tuples with a default each ({type(error).__name__}: {error})"
        ) from error


def _with_settings(run: Run, group: str, settings: Any) -> Run:
    part = dataclasses.replace(getattr(run, group), settings=settings)
    return dataclasses.replace(run, **{group: part})


@functools.cache
def catalogue(algorithm: str = "atod", env: str = "alfworld") -> Mapping[str, tree.Leaf]:
    """Every option by its path: of the run, of all shipped plug-ins, and of those named."""
    found = {leaf.path: leaf for leaf in tree.leaves(Run())}
    for group, name in (("algorithm", algorithm), ("env", env)):
        del found[f"{group}.settings"]
        chosen = {plugins.key(name): _default(group, name)}
        defaults = {k: p.Config() for k, p in plugins.shipped(GROUPS[group]).items()} | chosen
        for own, default in defaults.items():
            found |= {leaf.path: leaf for leaf in tree.leaves(default, f"{group}.{own}.")}
    return found


def to_plain(run: Run) -> dict[str, Any]:
    """The options as nested plain values, of plug-ins those of the chosen ones; `resolve` takes
    them back."""
    plain = tree.to_plain(run)
    for group in GROUPS:
        settings = plain[group].pop("settings")
        plain[group][plugins.key(plain[group]["name"])] = settings
    return plain


def to_config(run: Run) -> ConfigDict:
    """A config that resolves to the run, for overrides to change."""
    c = base(algorithm=run.algorithm.name, env=run.env.name)
    c.update(to_plain(run))
    return c


def leaves(run: Run) -> Iterator[tree.Leaf]:
    """Every option, of plug-ins those of the chosen ones, by the paths of the command line."""
    for leaf in tree.leaves(run):
        group, _, rest = leaf.path.partition(".settings.")
        if rest:
            own = plugins.key(getattr(run, group).name)
            leaf = leaf._replace(path=f"{group}.{own}.{rest}")
        yield leaf


def chosen(run: Run) -> dict[str, Any]:
    """The options that define a run and are not as they are by default, by path."""
    found = defining(run)
    defaults = catalogue(run.algorithm.name, run.env.name)
    return {path: x for path, x in found.items() if x != defaults[path].value}


def defining(run: Run) -> dict[str, Any]:
    """The options that define a run, by path: two runs that agree on them are the same run.

    Left out are those that change only where and how it is computed, and sections nobody reads.
    """
    unread = _unread(run)
    return {
        leaf.path: leaf.value
        for leaf in leaves(run)
        if leaf.about.pins and not leaf.path.startswith(unread)
    }


def _unread(run: Run) -> tuple[str, ...]:
    """How the paths of the options begin that this run never looks at."""
    read = {
        "student.fresh.": run.student.fresh.hidden_size > 0,
        "student.lora_alpha": run.student.lora_rank > 0,
        "teacher.": bool(run.teacher.path),
        "demos.": run.rollout.source == "expert",
    }
    return tuple(start for start, is_read in read.items() if not is_read)


def changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """The run with some options changed, by path.

    Raises:
      ValueError: as `resolve`.
    """
    plain = tree.flatten(to_plain(run))
    return resolve(tree.unflatten(plain | dict(changes)), model_required=False)


def _across(run: Run, model_required: bool) -> list[str]:
    """What several sections have to agree on."""
    problems = []
    if model_required and not run.student.path:
        problems.append("student.path='': name a Hugging Face folder or household/<name>")
    if run.rollout.source == "recorded" and not _is_folder(run.rollout.episodes):
        problems.append(
            f"rollout.episodes={run.rollout.episodes!r}: no such folder; name the workdir of a run "
            "with --config.record=true"
        )
    supervised = algorithm_of(run).supervised
    if (run.rollout.source, supervised) in (("expert", False), ("student", True)):
        problems.append(
            f"rollout.source={run.rollout.source!r} with algorithm.name={run.algorithm.name!r}: "
            "turns of the expert are for supervised learning (sft), which needs them; change one "
            "of the two"
        )
    try:
        template_of(environment_of(run), run.env.template)
    except ValueError as error:
        problems.append(str(error))
    return problems + _reward(run)


def _reward(run: Run) -> list[str]:
    """What the reference computes all the same: returns compared with none, and a penalty that
    drowns in the groups whose returns are equal."""
    flat = tree.flatten(tree.to_plain(run.algorithm.settings))
    own = {path.rpartition(".")[2]: (path, value) for path, value in flat.items()}
    if "estimator" in own and run.rollout.group == 1:
        return ["rollout.group=1: a return is compared with the others of its group; set 2 or more"]
    if own.get("statistics", ("", ""))[1] != "trajectories" or not own["invalid_penalty"][1]:
        return []
    path, value = own["invalid_penalty"]
    return [
        f"algorithm.{plugins.key(run.algorithm.name)}.{path}={value} with "
        "statistics='trajectories': a group with equal returns would divide the penalty by eps; "
        "set invalid_penalty=0 or statistics='turns'"
    ]


def _is_folder(name: str) -> bool:
    return bool(name) and Path(name).is_dir()


def algorithm_of(run: Run) -> Algorithm:
    """The algorithm that a run names."""
    return plugins.load(ALGORITHMS, run.algorithm.name)


def environment_of(run: Run) -> Environment:
    """The environment that a run names."""
    return plugins.load(ENVIRONMENTS, run.env.name)
