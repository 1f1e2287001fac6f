"""The parts of a dry run's output, as text."""

from collections.abc import Mapping

from atod_jax.estimate import memory, roofline
from atod_jax.estimate.compiled import Measured
from atod_jax.estimate.hardware import Hardware
from atod_jax.estimate.plan import Placed, Plan, added, count, parameters
from atod_jax.estimate.text import amount, digits
from atod_jax.models import AXES
from atod_jax.results.tables import padded_table


def placement(plan: Plan) -> str:
    """The meshes and the tables that place parameters, and what they make of every parameter."""
    patterns = padded_table(
        ("parameters", "logical axes"), [(pattern, _axes(logical)) for pattern, logical in AXES]
    )
    found = [_meshes(plan), _rules(plan), patterns, _parameters("student", _student_layouts(plan))]
    if plan.teacher:
        found.append(_parameters("teacher", {"on a device": plan.teacher}))
    return "\n\n".join(found)


def _meshes(plan: Plan) -> str:
    """One line per mesh; one line where all models share one."""
    meshes = {"mesh": plan.student}
    if plan.copies:
        meshes["mesh of the student while it samples"] = plan.sampling
    if plan.teacher and plan.reserved:
        meshes["mesh of the teacher, on devices of its own"] = plan.teacher
    elif plan.teacher and plan.teacher.mesh != plan.student.mesh:
        meshes["mesh of the teacher, on the same devices"] = plan.teacher
    return "\n".join(
        f"{name}: {', '.join(f'{axis} {size}' for axis, size in placed.mesh)}"
        for name, placed in meshes.items()
    )


def _rules(plan: Plan) -> str:
    """The rules of both models, in one column where they are the same."""
    ours, theirs = dict(plan.student.rules), dict((plan.teacher or plan.student).rules)
    columns = {"mesh axis": ours}
    if theirs != ours:
        columns = {"of the student": ours, "of the teacher": theirs}
    rows = [(axis, *(rules[axis] or "-" for rules in columns.values())) for axis in ours]
    return padded_table(("logical axis", *columns), rows)


def _student_layouts(plan: Plan) -> Mapping[str, Placed]:
    sampling = {"while it samples": plan.sampling} if plan.copies else {}
    return {"on a device": plan.student} | sampling


def _parameters(whose: str, layouts: Mapping[str, Placed]) -> str:
    """Every parameter of a model, and its piece in each layout; their rules are the same."""
    found = [parameters(placed) for placed in layouts.values()]
    rows = [
        (
            p.name,
            _shape(p.shape),
            _axes(p.logical),
            _axes(p.mesh_axes),
            *(_shape(piece.local_shape) for piece in (p, *others)),
        )
        for p, *others in zip(*found, strict=True)
    ]
    return padded_table(
        (f"{whose} parameter", "shape", "logical axes", "mesh axes", *layouts), rows
    )


def memory_report(plan: Plan, hardware: Hardware) -> str:
    """Parameter counts and bytes per device, part by part, for every kind of device."""
    models = [("student", plan.student), ("teacher", plan.teacher)]
    sizes = [f"{name}: {count(p.model):,} parameters{_adapters(p)}" for name, p in models if p]
    tables = [_memory_table(kind) for kind in memory.needs(plan)]
    peaks = [_peak(kind, hardware) for kind in memory.needs(plan)]
    return "\n\n".join((*sizes, *tables, "\n".join(peaks)))


def _adapters(placed: Placed) -> str:
    more = sum(p.size for p in added(placed))
    return f", frozen, and {more:,} of adapters" if more else ""


def _memory_table(kind: memory.Needs) -> str:
    rows = [("whole run", name, amount(size)) for name, size in kind.resident.items()]
    for phase, parts in kind.phases.items():
        rows += [(phase, name, amount(size)) for name, size in parts.items()]
        rows.append((phase, "in all", amount(sum(parts.values()))))
    return padded_table(("while", "what", f"per {_device(kind)}"), rows)


def _peak(kind: memory.Needs, hardware: Hardware) -> str:
    phase, needed = kind.peak
    capacity = amount(hardware.chip.memory)
    return f"peak: {amount(needed)} of {capacity} per {_device(kind)}, in the {phase}"


def _device(kind: memory.Needs) -> str:
    return f"device of the {kind.whose}'s {kind.devices}" if kind.whose else "device"


def compiled_report(plan: Plan, measured: Mapping[str, Measured]) -> str:
    """XLA's figures for the programs beside ours."""
    ours = memory.temporaries(plan)
    rows = [
        (name, amount(m.arguments), amount(m.temporary), amount(ours[name]))
        for name, m in measured.items()
        if name in ours
    ]
    return padded_table(("compiled here", "arguments", "temporary", "estimated"), rows)


def time_report(plan: Plan, hardware: Hardware, total_steps: int) -> str:
    """Seconds per phase of the longest iteration there can be, and what binds each."""
    phases = roofline.phases(plan, hardware)
    rows = [
        (
            phase.name,
            amount(phase.work.flops, "FLOP"),
            amount(phase.work.memory),
            amount(sum(phase.work.links.values())),
            digits(phase.seconds),
            phase.binds,
        )
        for phase in phases
    ]
    seconds = sum(phase.seconds for phase in phases)
    columns = ("phase", "operations", "memory traffic", "links", "seconds", "binds")
    where = f"{hardware}"
    if plan.reserved and plan.teacher:
        where += f", teacher scoring on its own {plan.teacher.devices}, the rest on the others"
    return "\n\n".join(
        (
            f"one iteration, per device of {where}; every episode {plan.turns} turns long, "
            f"prompts of {plan.prompt} and actions of {plan.response} tokens",
            padded_table(columns, rows),
            f"{digits(3600 / seconds)} steps per hour, {digits(seconds * total_steps / 3600)} "
            f"hours for {total_steps} steps, evaluations and environments aside",
        )
    )


def _axes(names: tuple[str | None, ...]) -> str:
    return ", ".join(name or "-" for name in names)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
