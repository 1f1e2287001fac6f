"""The parts of a dry run's output, as text."""

from collections.abc import Mapping

from atod_jax.estimate import memory, roofline
from atod_jax.estimate.compiled import Measured
from atod_jax.estimate.hardware import Hardware
from atod_jax.estimate.plan import Plan, count, parameters
from atod_jax.estimate.text import amount, digits, table
from atod_jax.models import AXES
from atod_jax.sharding import RULES


def placement(plan: Plan) -> str:
    """The tables that place parameters, and what they make of every parameter of the student."""
    rules = [(axis, rule or "-") for axis, rule in RULES.items()]
    patterns = [(pattern, _axes(logical)) for pattern, logical in AXES]
    used = [
        (p.name, _shape(p.shape), _axes(p.logical), _axes(p.mesh_axes), _shape(p.local_shape))
        for p in parameters(plan.student, plan.mesh)
    ]
    columns = ("parameter", "shape", "logical axes", "mesh axes", "on a device")
    return "\n\n".join(
        (
            f"mesh: {', '.join(f'{axis} {size}' for axis, size in plan.mesh)}",
            table(("logical axis", "mesh axis"), rules),
            table(("parameters", "logical axes"), patterns),
            table(columns, used),
        )
    )


def memory_report(plan: Plan, hardware: Hardware) -> str:
    """Parameter counts and bytes per device, part by part."""
    models = [("student", plan.student), ("teacher", plan.teacher)]
    sizes = [f"{name}: {count(m):,} parameters" for name, m in models if m]
    rows = [("whole run", name, amount(size)) for name, size in memory.resident(plan).items()]
    for phase, parts in memory.phases(plan).items():
        rows += [(phase, name, amount(size)) for name, size in parts.items()]
        rows.append((phase, "in all", amount(sum(parts.values()))))
    phase, needed = memory.peak(plan)
    capacity = amount(hardware.chip.memory)
    peak = f"peak: {amount(needed)} of {capacity} per device, in the {phase}"
    return "\n\n".join((*sizes, table(("while", "what", "per device"), rows), peak))


def compiled_report(plan: Plan, measured: Mapping[str, Measured]) -> str:
    """XLA's figures for the programs beside ours."""
    ours = memory.phases(plan)
    rows = [
        (name, amount(m.arguments), amount(m.temporary), amount(sum(ours[name].values())))
        for name, m in measured.items()
        if name in ours
    ]
    return table(("compiled here", "arguments", "temporary", "estimated"), rows)


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
    return "\n\n".join(
        (
            f"one iteration, per device of {hardware}; every episode {plan.turns} turns long, "
            f"prompts of {plan.prompt} and actions of {plan.response} tokens",
            table(columns, rows),
            f"{digits(3600 / seconds)} steps per hour, {digits(seconds * total_steps / 3600)} "
            f"hours for {total_steps} steps, evaluations and environments aside",
        )
    )


def _axes(names: tuple[str | None, ...]) -> str:
    return ", ".join(name or "-" for name in names)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
