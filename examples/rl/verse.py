"""The reward: how much of a text is rhymed verse. It looks at the text and nothing else."""

import re

PROMPTS = [
    "Tell me a story about a mouse.",
    "Tell me a story about a ship.",
    "Tell me a story about a king.",
    "Tell me a story about the sea.",
]


def reward(text):
    """From 0, prose, to 1: the share of words that stand in lines of verse, where a line without a rhyme counts for less.

    A line counts once however often it is said, and a word rhymes with another word only, so that saying one line over and
    over earns nothing. The last line does not count: the length limit may have cut it off.
    """
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    endings = [last_word(line) for line in lines]
    earned = 0.0
    for index, line in enumerate(lines):
        words = len(line.split())
        if 3 <= words <= 10 and line not in lines[:index]:
            near = endings[max(0, index - 2) : index + 3]
            earned += words * (1.0 if any(rhyme(endings[index], other) for other in near) else 0.3)
    return earned / max(len(text.split()), 20)


def last_word(line):
    words = re.findall(r"[a-z']+", line.lower())
    return words[-1] if words else ""


def rhyme(word, other):
    """By their letters, which is as much as one can hear without a dictionary."""
    return word != other and len(word) > 1 and word[-2:] == other[-2:]
