"""General talk about the pictures of the miniature, on which a tiny model learns to see and to answer.

Its wording is of its own: no task of the miniature, and no data set that is read, asks in these words.
"""

from collections.abc import Callable

import numpy as np

from datamodules.miniature.scenes_images import COLOURS, QUADRANTS, SHAPES, SIZES, Thing

# So that the vocabulary knows the commonest words of tasks to come as one token each.
COMMON = """
the a an of and in on is are it to with what which who where how many this that there does do image picture photo text
caption meme tweet question answer contain show see look not no yes true false shape color colour harmful harmless help
people damage water fire none one two three all my your our friends family left right letter A B C D E F G H
"""
SENTENCES = (
    "a {} here", "this is my {}", "only {} today", "{} , as you see", "they call it {}", "{} again", "we love {}",
)  # fmt: skip
# Share of doubts with a "not". With half of them yes and no say nothing of whether the word fits, and after 2,200 steps
# the tiny model still guessed at doubts and lines alike; with a quarter it had both after 1,200.
NEGATED = 0.25


def _describe(thing: Thing, rng: np.random.Generator) -> tuple[str, str]:
    return "describe the image :", f"a {thing.size} {thing.colour} {thing.shape} at the {thing.quadrant}"


def _claimed(thing: Thing, rng: np.random.Generator) -> tuple[str, bool]:
    """A colour or a shape, and whether it is the thing's: so in one of two."""
    own, others = (thing.colour, list(COLOURS)) if rng.random() < 0.5 else (thing.shape, list(SHAPES))
    if rng.random() < 0.5:
        return own, True
    return str(rng.choice([word for word in others if word != own])), False


def _statement(thing: Thing, rng: np.random.Generator) -> tuple[str, str]:
    word, holds = _claimed(thing, rng)
    return f"true or false : {word}", str(holds).lower()


def _doubt(thing: Thing, rng: np.random.Generator) -> tuple[str, str]:
    word, holds = _claimed(thing, rng)
    negated = rng.random() < NEGATED
    return f"is it {'not ' if negated else ''}{word} ?", "yes" if holds != negated else "no"


def _line(thing: Thing, rng: np.random.Generator) -> tuple[str, str]:
    word, holds = _claimed(thing, rng)
    return f"line : {rng.choice(SENTENCES).format(word)} . fits ?", "yes" if holds else "no"


Question = Callable[[Thing, np.random.Generator], tuple[str, str]]
QUESTIONS: dict[str, Question] = {
    "describe": _describe,
    "place": lambda thing, rng: ("where :", thing.quadrant),
    "colour": lambda thing, rng: ("colour :", thing.colour),
    "shape": lambda thing, rng: ("shape :", thing.shape),
    "size": lambda thing, rng: ("size :", thing.size),
    "statement": _statement,
    "doubt": _doubt,
    "line": _line,
}
# How often each is asked of one picture.
TIMES = {"statement": 2, "doubt": 4, "line": 4}


def ask_all(thing: Thing, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(kind, prompt, answer) of all questions about a thing."""
    return [(kind, *ask(thing, rng)) for kind, ask in QUESTIONS.items() for _ in range(TIMES.get(kind, 1))]


def looks(thing: Thing) -> tuple[int, int, int, int]:
    """Shape, colour, size and quadrant as classes (`LOOKS` holds how many there are of each)."""
    return (
        SHAPES.index(thing.shape),
        list(COLOURS).index(thing.colour),
        list(SIZES).index(thing.size),
        QUADRANTS.index(thing.quadrant),
    )


LOOKS = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES), "quadrant": len(QUADRANTS)}


def vocabulary_texts() -> list[str]:
    """What the tiny model's tokenizer is trained on: every word of the questions and answers, and common ones."""
    rng = np.random.default_rng(0)
    words = [*COLOURS, *SHAPES, *SIZES, *COMMON.split()]
    corners = [(x, y) for x in (20, 44) for y in (20, 44)]
    things = [Thing(s, c, *at, radius) for s in SHAPES for c in COLOURS for at in corners for radius in (8, 15)]
    asked = [f"{prompt} {answer}" for thing in things for _, prompt, answer in ask_all(thing, rng)]
    # A word at the beginning of a prompt stands without a blank before it.
    return asked + [f"{word} {word} {word}" for word in words for _ in range(200)]
