"""One question with its answer, and the register of the kinds of exchange."""

from typing import NamedTuple

from asking import question
from styles import sing

KINDS = {}  # for each module the (weight, function) of its kinds


class Exchange(NamedTuple):
    """A user's line, the plain answer, the poet's answer, and what it was about."""

    user: str
    text: str
    verse: str
    about: dict = {}


def kind(weight):
    """Register a function of (rng, memory) that makes an exchange."""

    def register(function):
        KINDS.setdefault(function.__module__, []).append((weight, function))
        return function

    return register


def fact(rng, asked, answer, more=""):
    """An exchange about a fact: the poet sings the bare answer."""
    text = f"{answer} {more}".strip()
    return Exchange(question(rng, asked), text, sing(answer, rng))
