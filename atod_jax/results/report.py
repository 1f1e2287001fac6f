"""The page a run ends with: what it achieved, how sure that is, and how to get it again.

Takes plain data and writes `report.md` and `success_curve.png`; it measures nothing itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from atod_jax.records import CUT, SHORTENED
from atod_jax.results import plots
from atod_jax.results.files import write_text
from atod_jax.results.intervals import EvalResult, Interval, paired_difference
from atod_jax.results.tables import markdown_table, percent, points

ROLES = {"start": "before training", "final": "after training", "teacher": "teacher"}
COMPARISONS = (("final", "start"), ("final", "teacher"))
COLOURS = {"final": "#0b5fa5", "teacher": "#c2571a", "start": "#7a7a7a"}
TOO_LONG = "prompt_too_long"
MOST = 0.05  # a share of episodes or responses that is worth no warning yet
CURVE_KEYS = ("eval/success", "eval/success_low", "eval/success_high")

Evaluations = Mapping[str, Mapping[float, EvalResult]]  # role -> temperature -> result
Curve = Sequence[tuple[int, Interval]]  # (training step, share of tasks solved)


def write_report(
    workdir: str | Path,
    *,
    title: str,
    command: str,
    evaluations: Evaluations,
    curve: Curve,
    curve_temperature: float,
    settings: Mapping[str, Any],
    artifacts: Mapping[str, str],
    chosen: Mapping[str, Any] | None = None,
    example: str = "",
    picture: str = "",
) -> Path:
    """Writes `report.md` and, with a curve, `success_curve.png`; returns the report's path.

    Args:
      workdir: the run's folder.
      title: heading of the page.
      command: the command line that made the run.
      evaluations: results under "start", "final" and, where there is one, "teacher", each by
        sampling temperature.
      curve: success of the student during training; `curve_of` finds it.
      curve_temperature: the sampling temperature of the curve.
      settings: name -> value, shown as a table (config digest, seeds, wall time, device, ...).
      artifacts: what -> where, e.g. {"transcripts": "transcripts/"}.
      chosen: options that are not as they are by default, path -> value.
      example: an episode to read.
      picture: file of the workdir that shows the same episode.

    Raises:
      ValueError: a role is unknown or missing, or two results are on different tasks.
    """
    _check(evaluations)
    temperatures = sorted({t for results in evaluations.values() for t in results}, reverse=True)
    parts = [f"# {title}", "\n".join(f"- {_sentence(evaluations, t)}" for t in temperatures)]
    parts += [
        f"**Warning:** {text}"
        for t in temperatures
        for text in warnings_of(
            _at(evaluations, t), f" at temperature {t:g}", responses=(ROLES["final"],)
        )
    ]
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if curve:
        levels = {role: results.get(curve_temperature) for role, results in evaluations.items()}
        _draw_curve(workdir / "success_curve.png", curve, curve_temperature, levels)
        parts.append("![Share of evaluation tasks solved over training](success_curve.png)")
    parts += ["## Success", SUCCESS]
    for temperature in temperatures:
        parts += [f"Temperature {temperature:g}:", evaluation_table(_at(evaluations, temperature))]
    parts += ["## Differences", DIFFERENCES, _difference_table(evaluations, temperatures)]
    if example:
        shown = example.splitlines()
        more = ["…"] if len(shown) > EXAMPLE_LINES else []
        lines = (f"    {line}" for line in shown[:EXAMPLE_LINES] + more)
        parts += ["## An episode", EXAMPLE, "\n".join(lines)]
        parts += [f"![The same episode, its tokens coloured]({picture})"] if picture else []
    parts += ["## How it was made", f"```\n{command}\n```", _list(settings, "setting", "value")]
    if chosen:
        parts += ["Options that are not as they are by default:", _list(chosen, "option", "value")]
    parts += ["## Where things are", _list(artifacts, "what", "where")]
    path = workdir / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def evaluation_table(results: Mapping[str, EvalResult]) -> str:
    """Markdown: one column per result, rows for all tasks, each task type, turns and validity.

    With several tries per task also pass@k, with graded outcomes also mean scores; where they are
    known the reasons why episodes stopped and what was wrong with responses. The share of episodes
    that could not be played, if any, stands beside the success that counts them as not solved.

    Raises:
      ValueError: the results are on different tasks.
    """
    _check_same_tasks(results.values())
    every, kinds = list(results.values()), results[next(iter(results))].kinds
    rows = [
        _row("**all tasks**", len(kinds), [_rate(r) for r in every]),
        *_kind_rows("", kinds, [r.rate_by_kind() for r in every]),
    ]
    if any(r.seeds > 1 for r in every):
        rows.append(_row("won at least once", len(kinds), [_pass_at_k(r) for r in every]))
    if any(not np.array_equal(r.score, r.success) for r in every):
        rows.append(_row("**score**", len(kinds), [percent(r.mean_score()) for r in every]))
        rows += _kind_rows("score, ", kinds, [r.mean_score_by_kind() for r in every])
    rows += [
        _row("turns per episode", "", [f"{r.turns.mean():.1f}" for r in every]),
        _row("valid responses (%)", "", [f"{100 * r.valid_rate:.1f}" for r in every]),
    ]
    for reason in dict.fromkeys(reason for r in every for reason in sorted(r.stops)):
        shares = [_share(r.stop_share(reason)) for r in every]
        rows.append(_row(f"stopped by {reason} (%)", "", shares))
    problems = [r.problem_shares() for r in every]
    for problem in dict.fromkeys(problem for shares in problems for problem in shares):
        shares = [_share(of.get(problem, 0.0)) for of in problems]
        rows.append(_row(f"responses: {problem} (%)", "", shares))
    if any(r.failed for r in every):
        rows.append(_row("could not be played (%)", "", [_share(r.failed_share) for r in every]))
    return markdown_table(["task type", "tasks", *results], rows)


def warnings_of(
    results: Mapping[str, EvalResult], where: str = "", *, responses: Sequence[str] | None = None
) -> list[str]:
    """A sentence for everything that went wrong often enough to be looked into.

    Args:
      results: who played -> result.
      where: said after who played, e.g. " at temperature 1".
      responses: of whom it is said that they often answered without a valid action; None: of all.
    """
    return [
        text
        for who, r in results.items()
        for text in _warnings(r, f"{who}{where}", invalid=responses is None or who in responses)
    ]


def _warnings(result: EvalResult, who: str, *, invalid: bool) -> list[str]:
    shares = result.problem_shares()
    lost = {SHORTENED: shares.pop(SHORTENED, 0.0), CUT: shares.pop(CUT, 0.0)}
    kinds = ", ".join(f"{problem} {_share(share)} %" for problem, share in shares.items())
    found = (
        (
            result.stop_share(TOO_LONG) or 0.0,
            f"of the episodes {who} stopped because the prompt was too long for the model, which "
            "counts as not solved; add a longer bucket to sampling.prompt_buckets or show fewer "
            "past turns (env.history).",
        ),
        (
            lost[SHORTENED],
            f"of the prompts {who} were too long for the model and lost their beginning; add a "
            "longer bucket to sampling.prompt_buckets or show fewer past turns (env.history).",
        ),
        (
            lost[CUT],
            f"of the responses {who} were cut by the token limit; raise sampling.max_new_tokens.",
        ),
        (
            sum(shares.values()) if invalid else 0.0,
            f"of the responses {who} held no valid action ({kinds}); `python -m atod_jax play "
            "--player=model --checkpoint=RUN` shows some.",
        ),
    )
    unplayed = (
        f"of the episodes {who} could not be played and count as not solved; the terminal has the "
        "reasons."
    )
    said = [(result.failed_share, unplayed)] if result.failed else []
    said += [(share, text) for share, text in found if share > MOST]
    return [f"{_share(share)} % {text}" for share, text in said]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _row(name: str, count: Any, values: Sequence[Any]) -> list[Any]:
    return [name, count, *values]


def _kind_rows(
    prefix: str, kinds: Sequence[str], rates: Sequence[Mapping[str, Interval]]
) -> list[list[Any]]:
    if len(rates[0]) < 2:
        return []
    return [
        _row(prefix + kind, kinds.count(kind), [percent(rate[kind]) for rate in rates])
        for kind in rates[0]
    ]


def _rate(result: EvalResult) -> str:
    """The share of tasks solved, and beside it that of those which could not be played."""
    unplayed = f" ({_share(result.failed_share)} % not played)" if result.failed else ""
    return percent(result.rate()) + unplayed


def _pass_at_k(result: EvalResult) -> str:
    return f"{percent(result.pass_at_k())} in {result.seeds} tries"


def curve_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, Interval]]:
    """The success curve in the records of a run, in order of steps."""
    points = {}
    for record in records:
        value, low, high = (record.get(key) for key in CURVE_KEYS)
        if value is not None and low is not None and high is not None:
            points[record["step"]] = Interval(value, low, high)
    return sorted(points.items())


# -------------------------------------------------------------------------------------------- input


def _check(evaluations: Evaluations) -> None:
    if not {"start", "final"} <= set(evaluations) <= set(ROLES):
        given = sorted(evaluations)
        raise ValueError(
            f"evaluations need 'start' and 'final' and may have 'teacher', not {given}"
        )
    _check_same_tasks(r for results in evaluations.values() for r in results.values())


def _check_same_tasks(results: Iterable[EvalResult]) -> None:
    if len({(result.task_ids, result.kinds) for result in results}) != 1:
        raise ValueError("results to be compared must be on the same tasks in the same order")


def _at(evaluations: Evaluations, temperature: float) -> dict[str, EvalResult]:
    """The results at one temperature, by what the roles are called in tables."""
    return {
        label: evaluations[role][temperature]
        for role, label in ROLES.items()
        if temperature in evaluations.get(role, {})
    }


def _comparisons(evaluations: Evaluations, temperature: float) -> dict[tuple[str, str], Interval]:
    """The differences of which both sides were evaluated at this temperature."""
    at = {role: r[temperature] for role, r in evaluations.items() if temperature in r}
    return {
        (first, second): paired_difference(at[first].success, at[second].success)
        for first, second in COMPARISONS
        if first in at and second in at
    }


# --------------------------------------------------------------------------------------------- text

EXAMPLE = "Of those shown last, in `transcripts/`; run.html has more, token by token."
EXAMPLE_LINES = 60
SUCCESS = "Share of tasks solved, in percent, with 95 % Wilson intervals."
DIFFERENCES = (
    "Paired over the same tasks, in percentage points, with 95 % intervals. They speak of new "
    "tasks of this kind; another training seed may differ by more."
)
SOLVED = {"start": "before training", "final": "after training", "teacher": "by the teacher"}


def _list(values: Mapping[str, Any], first: str, second: str) -> str:
    return markdown_table([first, second], list(values.items()))


def _sentence(evaluations: Evaluations, temperature: float) -> str:
    """The result at one temperature, for the reader who reads no further."""
    at = {role: r[temperature] for role, r in evaluations.items() if temperature in r}
    rates = ", ".join(f"{_rate(result)} {SOLVED[role]}" for role, result in at.items())
    count = len(next(iter(at.values())).task_ids)
    text = f"**Temperature {temperature:g}**, {count} tasks, % solved: {rates}."
    gap = _comparisons(evaluations, temperature).get(("final", "teacher"))
    if gap is None:
        return text
    side = "above" if gap.low > 0 else "below" if gap.high < 0 else "not distinguishable from"
    return f"{text} The trained student is {side} the teacher: {points(gap)} points."


def _difference_table(evaluations: Evaluations, temperatures: Sequence[float]) -> str:
    rows = [
        [
            f"{ROLES[first]} - {ROLES[second]}",
            f"{temperature:g}",
            points(gap),
            "yes" if gap.excludes(0.0) else "no",
        ]
        for temperature in temperatures
        for (first, second), gap in _comparisons(evaluations, temperature).items()
    ]
    return markdown_table(["difference", "temperature", "points", "zero excluded"], rows)


# --------------------------------------------------------------------------------------------- plot


def _draw_curve(
    path: Path, curve: Curve, temperature: float, levels: Mapping[str, EvalResult | None]
) -> None:
    """The student over training steps; the start and the teacher as levels."""
    figure, axes = plots.success_figure("tasks solved (%)")
    _draw_student(axes, curve)
    for role in ("teacher", "start"):
        result = levels.get(role)
        if result is not None:
            _draw_level(axes, role, result.rate())
    axes.set_title(
        f"Success at sampling temperature {temperature:g}, with 95 % intervals", fontsize=11
    )
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    plots.save(figure, path)


def _draw_student(axes: Axes, curve: Curve) -> None:
    steps = [step for step, _ in curve]
    low, value, high = (
        [100 * bound for bound in bounds]
        for bounds in zip(*((r.low, r.value, r.high) for _, r in curve), strict=True)
    )
    colour = COLOURS["final"]
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(
        steps, value, color=colour, lw=2, marker="o", ms=4, clip_on=False, zorder=3, label="student"
    )
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))


def _draw_level(axes: Axes, role: str, rate: Interval) -> None:
    colour = COLOURS[role]
    axes.axhspan(100 * rate.low, 100 * rate.high, color=colour, alpha=0.12, lw=0)
    axes.axhline(100 * rate.value, color=colour, lw=1.6, ls=(0, (5, 3)), label=ROLES[role])
