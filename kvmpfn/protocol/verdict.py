"""What an exploration says: safe, or the shortest way to harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from textwrap import wrap
from typing import Any, NamedTuple

from kvmpfn.protocol.explore import Found, Search
from kvmpfn.protocol.gup import Setting

COLUMN = 56
"""Characters of a timeline's column."""

__all__ = ["Counterexample", "Step", "Verdict", "replay", "retrace"]


class Step(NamedTuple):
    """One step of a counterexample.

    Attributes
    ----------
    thread : str
        ``vCPU 0``, ``host 0`` and so on.
    text : str
        What it did.
    effect : str
        The value read, or the words changed; empty if neither.
    """

    thread: str
    text: str
    effect: str

    @property
    def host(self) -> bool:
        """Whether a notifier client did it."""
        return self.thread.startswith("host")


@dataclass(frozen=True)
class Counterexample:
    """The shortest sequence of steps that breaks a property.

    Attributes
    ----------
    steps : tuple of Step
        From the initial state on.
    text : str
        What is wrong after the last step.
    repeats_from : int or None
        How many steps lead to the cycle that the rest is, if completion is what is broken.
    moves : tuple of (int, int)
        Thread, and place among its possible steps, of each step; what `replay` follows.
    """

    steps: tuple[Step, ...]
    text: str
    repeats_from: int | None = None
    moves: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.steps)

    def timeline(self) -> str:
        """Write the steps in two columns, the vCPUs' and the host's."""
        lines = [f"step  {'vCPU':<{COLUMN}}  host"]
        for number, step in enumerate(self.steps, 1):
            if self.repeats_from == number - 1:
                lines.append("      from here on, again and again:")
            said = f"{step.thread.split()[1]}: {step.text}" + (f" ({step.effect})" if step.effect else "")
            indent = " " * (COLUMN + 2 if step.host else 0)
            for place, part in enumerate(wrap(said, COLUMN, subsequent_indent="   ")):
                lines.append(f"{'' if place else number:>4}  {indent}{part}")
        return "\n".join([*lines, f"      => {self.text}"])

    def __str__(self) -> str:
        return self.timeline()


@dataclass(frozen=True)
class Verdict:
    """What an exploration found.

    Attributes
    ----------
    safe : bool
        Whether no interleaving breaks a property.
    states : int
        States reached: all of the reduced graph if safe; if not, those reached before the shortest
        counterexample was complete.
    transitions : int
        Steps looked at, in the same sense.
    violated : str or None
        Which of `properties` is broken; the first, where one step breaks several.
    broken : tuple of str
        All that the last step breaks.
    counterexample : Counterexample or None
        How.
    properties : tuple of str
        Those looked at.
    question : dict of str to object
        What was asked: ``fault_path``, ``vcpus`` and so on.
    """

    safe: bool
    states: int
    transitions: int
    violated: str | None
    broken: tuple[str, ...]
    counterexample: Counterexample | None
    properties: tuple[str, ...]
    question: dict[str, Any]
    setting: Setting = field(repr=False)

    @property
    def title(self) -> str:
        """The question in one line."""
        asked = self.question
        parts = [
            str(asked["fault_path"]),
            f"caller {asked['caller']}",
            f"memory model {asked['memory_model']}",
        ]
        parts += [f"{asked[name]} {name}" for name in ("vcpus", "pages", "invalidations")]
        parts += [f"mutant {name}" for name in asked["mutate"]]
        return ", ".join([*parts, *([] if asked["refcounted"] else ["pages without a count"])])

    @property
    def answer(self) -> str:
        """The verdict in one line."""
        size = f"{self.states:,} states, {self.transitions:,} transitions"
        if self.counterexample is None:
            return f"SAFE: {size}; {', '.join(self.properties)} hold"
        return f"UNSAFE: {self.violated} after {len(self.counterexample)} steps ({size})"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        found = None
        if self.counterexample:
            found = {
                "text": self.counterexample.text,
                "repeats_from": self.counterexample.repeats_from,
                "steps": [step._asdict() for step in self.counterexample.steps],
            }
        return {
            **self.question,
            "properties": list(self.properties),
            "safe": self.safe,
            "violated": self.violated,
            "broken": list(self.broken),
            "states": self.states,
            "transitions": self.transitions,
            "counterexample": found,
        }

    def __repr__(self) -> str:
        lines = [self.title, self.answer]
        return "\n".join([*lines, self.counterexample.timeline()] if self.counterexample else lines)

    def _repr_html_(self) -> str:
        text = f"<p>{escape(self.title)}<br><b>{escape(self.answer)}</b></p>"
        if self.counterexample is None:
            return text
        rows = ["<tr><th>step</th><th>vCPU</th><th>host</th><th>effect</th></tr>"]
        for number, step in enumerate(self.counterexample.steps, 1):
            said = escape(f"{step.thread.split()[1]}: {step.text}")
            cells = ("", said) if step.host else (said, "")
            rows.append(
                f"<tr><td>{number}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}"
                f"<td>{escape(step.effect)}</td></tr>"
            )
        end = f"<p>{escape(self.counterexample.text)}</p>"
        return f"{text}<table>{''.join(rows)}</table>{end}"


def retrace(search: Search, found: Found) -> Counterexample:
    """Follow the moves of a violation, and say what each did."""
    assert found.violation is not None
    words, state = search.words, search.initial
    steps = []
    for at, place in found.moves:
        move = search.moves_of(at, state)[place]
        before = search.memory(state)
        changes = [
            words.change(name, old, new)
            for name, old, new in zip(words.names, before, move.memory, strict=True)
            if old != new
        ]
        if move.word is not None:
            changes = [words.show(words.names[move.word], before[move.word])]
        steps.append(Step(search.threads[at].name, move.text, ", ".join(changes)))
        state = search.after(at, state, move)
    return Counterexample(tuple(steps), found.violation.text, found.repeats_from, tuple(found.moves))


def replay(verdict: Verdict) -> tuple[str, ...]:
    """Execute a counterexample step by step, from nothing but the question.

    Parameters
    ----------
    verdict : Verdict
        An unsafe one.

    Returns
    -------
    tuple of str
        The properties that are broken after its last step; none that the verdict is about was before.

    Raises
    ------
    ValueError
        If a step cannot happen, does something else than the counterexample says, or breaks a property early.
    """
    example = verdict.counterexample
    if example is None:
        raise ValueError("a safe verdict has no counterexample to replay")
    search = Search(verdict.setting, verdict.properties, reduced=False)
    state, passed = search.initial, [search.initial]
    broken: tuple[str, ...] = ()
    for number, ((at, place), step) in enumerate(zip(example.moves, example.steps, strict=True), 1):
        moves = search.moves_of(at, state)
        if broken or place >= len(moves) or (search.threads[at].name, moves[place].text) != step[:2]:
            raise ValueError(f"step {number} of the counterexample, {step.text!r}, cannot happen there")
        violation = search.broken(moves[place])
        broken = violation.properties if violation else ()
        state = search.after(at, state, moves[place])
        passed.append(state)
    if not broken and example.repeats_from is not None and passed[example.repeats_from] == state:
        return ("completion",)
    if not broken and (end := search.end(state)):
        broken = end.properties
    return broken
