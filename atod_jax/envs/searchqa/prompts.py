"""How a question and its searches are shown to a model, and how the answer becomes a command.

The newest result is the last entry of the history; there is no list of admissible actions.
"""

import re
from collections.abc import Iterator, Sequence

from atod_jax.envs import tagged
from atod_jax.envs.base import Episode, Projection, Template
from atod_jax.envs.searchqa import information, tags

# ----------------------------------------------------------------------------------- paper template

ROLE = (
    "You are an expert at answering questions; you work step by step and may look things up with a"
    " search engine."
)
# Holds exactly one answer block: where the prompt is part of what is judged, it is the example.
INSTRUCTIONS = (
    "It is your turn now. Reason about what you know first, inside <think> </think>. After the"
    " reasoning do one of two things and no more. If something is missing, ask the search engine:"
    " <search> query </search>. If you are able to answer, give a short answer without any"
    " explanation: <answer> short answer </answer>."
)
TAGS_EXPLAINED = (
    "<search> </search> marks what was asked, <information> </information> what the search engine"
    " returned."
)
_KINDS = ("search", "answer")


def answered(episode: Episode, history: int) -> list[tuple[int, str, str]]:
    """(step, command, what it returned) of the latest `history` steps, oldest first."""
    shown = [text for text, _ in episode.past[1:]] + [episode.current.text]
    # at the start there is a text and no step yet
    pairs = zip(episode.past, shown, strict=False)
    steps = [(n, p[1], text) for n, (p, text) in enumerate(pairs, 1)]
    return steps[max(0, len(steps) - history) :] if history > 0 else []


def paper_prompt(episode: Episode, history: int) -> str:
    """The full prompt: on the first turn or with `history` = 0 only role, question, instructions.

    A long one is cut from the left by the renderer, so that the instructions and the newest
    results stay.
    """
    lines = [ROLE, f"Your question: {episode.opening}"]
    entries = answered(episode, history)
    if entries:
        shown = "\n".join(f"Step {n}:{command} {text}\n" for n, command, text in entries)
        lines.append(
            f"You have taken {len(episode.past)} step(s) so far; the latest {len(entries)} are"
            f" shown. {TAGS_EXPLAINED}\nHistory:\n{shown}"
        )
    return "\n".join([*lines, INSTRUCTIONS])


def paper_project(response: str, commands: Sequence[str]) -> Projection:
    """The first search block, else the first answer block, else nothing.

    What follows the first closing tag is cut off. Invalid: no block, both kinds of opening tags, or
    one of them twice; the block is sent all the same.
    """
    kind, inside = _first_block(_cut(response))
    opened = len(re.findall("<(?:search|answer)>", response, re.IGNORECASE))
    if not kind:
        return Projection("", False, "no search or answer")
    problem = "" if opened == 1 else "several searches or answers"
    return Projection(f"<{kind}>{inside}</{kind}>", not problem, problem)


def _first_block(text: str) -> tuple[str, str]:
    """(kind, inside) of the first search block, else of the first answer block, else two ""."""
    for kind in _KINDS:
        if found := tags.blocks(kind, text, flags=re.IGNORECASE):
            return kind, found[0].strip()[: tagged.MAX_COMMAND_CHARS].rstrip()
    return "", ""


def _cut(response: str) -> str:
    for tag in ("</search>", "</answer>"):
        before, found, _ = response.partition(tag)
        if found:
            return before + tag
    return response


def paper_respond(command: str, thought: str) -> str:
    """A response with both tags; the think block stays even when the thought is empty."""
    return f"<think>{thought}</think>\n{command}"


# --------------------------------------------------------------------------------- compact template

MAX_QUERY_CHARS = 64  # bounds what a garbled answer adds to later prompts
MAX_PASSAGE_WORDS = 24


def compact_prompt(episode: Episode, history: int) -> str:
    """The terse prompt: question, then every search with the passages it found."""
    lines = [f"question: {episode.opening}"]
    for _, command, text in answered(episode, history):
        lines.append(bare(command) or "nothing")
        lines += [f"- {line}" for line in _passages(text)]
    return "\n".join(lines)


def _passages(observation: str) -> Iterator[str]:
    for title, text in information.read(observation):
        told = text if text.startswith(title) else f"{title}: {text}"
        yield " ".join(told.split()[:MAX_PASSAGE_WORDS])


def bare(command: str) -> str:
    """A tagged command as "search query" or "answer text"; "" for anything else."""
    return " ".join(_first_block(command)).strip()


def compact_project(response: str, commands: Sequence[str]) -> Projection:
    """`search query` or `answer text` after an optional think block, as a tagged command."""
    kind, _, rest = response.rpartition("</think>")[2].strip().partition(" ")
    words = " ".join(rest.split())[:MAX_QUERY_CHARS].rstrip()
    if kind not in _KINDS or not words or "<" in words:
        return Projection("", False, "no search or answer")
    return Projection(f"<{kind}>{words}</{kind}>", True)


def compact_respond(command: str, thought: str) -> str:
    """`<think>thought</think>search query`, or without a thought `search query` alone."""
    return f"<think>{thought}</think>{bare(command)}" if thought else bare(command)


TEMPLATES = {
    "paper": Template(
        paper_prompt, paper_project, paper_respond, cut_left=True, instructions=INSTRUCTIONS
    ),
    "compact": Template(compact_prompt, compact_project, compact_respond),
}
