"""What a multimodal LLM is asked: a wording from YAML, filled for a sample whose text or image may be missing.

The wordings in conf/prompt/ are our own; the paper's can be put in their place. The image is no part of a prompt: each
model family puts its placeholder in front where a sample shows one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter, ascii_uppercase

from datamodules.errors import InputError
from datamodules.image_text.sample import Sample


@dataclass(frozen=True)
class Prompts:
    """One wording. Parts that a sample does not need are left out, the others are joined by `joint`.

    preamble: what comes first ("": nothing). text: shows the text modality, `{text}`; left out where it is missing.
    question: comes last; may hold `{options}`. option: how one of them is written, `{letter}`, `{name}`; they are
    joined by `between`. answer: what the model is to say, of `{letter}`, `{name}` for options, or `{answer}`.
    names: other names for the classes than the corpus has. source: whose wording it is, for records and reports.
    """

    text: str
    question: str
    preamble: str = ""
    option: str = ""
    answer: str = "{answer}"
    between: str = " "
    joint: str = "\n"
    names: Sequence[str] = ()
    source: str = "own wording"

    def __post_init__(self):
        allowed = {
            "preamble": (), "text": ("text",), "question": ("options",),
            "option": ("letter", "name"), "answer": ("letter", "name", "answer"),
        }  # fmt: skip
        for part, fields in allowed.items():
            _check(part, getattr(self, part), fields)
        if "{text}" not in self.text:
            raise InputError(f"prompt: expected {{text}} in its part 'text', found {self.text!r}: put it in")

    @property
    def lettered(self) -> bool:
        """Whether an answer is recognised by its letter (the published parser) or by its words."""
        return "{letter}" in self.answer

    def ask(self, text: str | None, options: Sequence[str] = ()) -> str:
        """The prompt for a sample; text: None where it is missing."""
        listed = self.between.join(self._filled(self.option, number, options) for number in range(len(options)))
        parts = (
            self.preamble,
            "" if text is None else self.text.format(text=text),
            self.question.format(options=listed),
        )
        return self.joint.join(part for part in parts if part)

    def answers(self, options: Sequence[str]) -> list[str]:
        """What is to be said for each option."""
        return [self._filled(self.answer, number, options) for number in range(len(options))]

    def answer_of(self, sample: Sample, options: Sequence[str] = ()) -> str:
        """What is to be said for a sample: its option's answer, or its own."""
        if sample.label is None or not options:
            return self.answer.format(answer=sample.answer)
        return self._filled(self.answer, sample.label, options)

    def check(self, options: Sequence[str]) -> None:
        """Raises InputError where this wording cannot ask for these options."""
        if options and (wrong := _fields(self.answer) & {"answer"}):
            raise InputError(f"prompt: expected answers of {{letter}} or {{name}} for options, found {wrong}")
        if not options and _fields(self.answer) != {"answer"}:
            raise InputError(f"prompt: expected {{answer}} for open questions, found {self.answer!r}")
        if options and self.names and len(self.names) != len(options):
            raise InputError(f"prompt: expected {len(options)} names of options, found {len(self.names)}")
        if options and len(set(self.answers(options))) < len(options):
            raise InputError(f"prompt: expected an answer for each option, found {self.answers(options)}")

    def _filled(self, template: str, number: int, options: Sequence[str]) -> str:
        name = (self.names or options)[number]
        return template.format(letter=ascii_uppercase[number % 26], name=name)


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _check(part: str, template: str, allowed: Sequence[str]) -> None:
    try:
        fields = _fields(template)
    except ValueError as error:
        raise InputError(f"prompt: {part} is no template: {error}: write {{{{ for a brace") from None
    if unknown := fields - set(allowed):
        can = ", ".join(f"{{{name}}}" for name in allowed) or "no field"
        raise InputError(f"prompt: {part} takes {can}, found {{{sorted(unknown)[0]}}}")
