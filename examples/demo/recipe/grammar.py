"""A tiny text grammar.

A template is a line of text in which ``[a|b|c]`` picks one alternative (they
nest, and an alternative may be empty) and ``{slot}`` is looked up in a context.
A slot whose value is a list picks one entry each time. The text files in
``grammar/`` hold the templates; the loaders for their three layouts are here.
"""

import re
from functools import cache
from pathlib import Path

GRAMMAR = Path(__file__).parent / "grammar"

VOWEL_EXCEPTIONS = r"(?!uni|use|usu|one\b|once|eu|uku)"
ARTICLE = re.compile(r"\b([Aa]) (?=" + VOWEL_EXCEPTIONS + r"[aeiouAEIOU])")
AFTER_STOP = re.compile(r"((?:^|[.!?] |\n)\"?)([a-z])")


@cache
def parse(template):
    """Turn a template into a tuple of parts: text, ("slot", name), ("pick", options)."""
    parts, at = _sequence(template, 0, "")
    if at != len(template):
        raise ValueError(f"stray {template[at]!r} in {template!r}")
    return parts


def _sequence(text, at, stops):
    parts = []
    while at < len(text) and text[at] not in stops:
        if text[at] == "[":
            options = []
            while text[at] != "]":
                option, at = _sequence(text, at + 1, "|]")
                if at >= len(text):
                    raise ValueError(f"unclosed [ in {text!r}")
                options.append(option)
            parts.append(("pick", options))
            at += 1
        elif text[at] == "{":
            end = text.index("}", at)
            parts.append(("slot", text[at + 1 : end]))
            at = end + 1
        else:
            run = re.compile(r"[^\[\]{}|]+" if stops else r"[^\[{]+").match(text, at)
            if run is None:
                raise ValueError(f"stray {text[at]!r} in {text!r}")
            parts.append(run.group())
            at = run.end()
    return tuple(parts), at


def _render(parts, rng, context, out):
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif part[0] == "pick":
            _render(part[1][int(rng.random() * len(part[1]))], rng, context, out)
        else:
            value = context[part[1]]
            out.append(value if isinstance(value, str) else rng.choice(value))


def fill(template, rng, context):
    """Expand one template; the result still needs `tidy` once it is whole."""
    out = []
    _render(parse(template), rng, context, out)
    return "".join(out)


def tidy(text):
    """Mend the seams of filled templates: spaces, a/an, capital letters."""
    text = re.sub(r" {2,}", " ", text).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    text = ARTICLE.sub(r"\1n ", text)
    return AFTER_STOP.sub(lambda m: m.group(1) + m.group(2).upper(), text)


def write(template, rng, context):
    """`fill` and `tidy` in one go."""
    return tidy(fill(template, rng, context))


def _lines(name):
    return (GRAMMAR / name).read_text(encoding="utf-8").splitlines()


@cache
def load_words(name="words.txt"):
    """Read "list: word, word" lines; an indented line goes on with the last list."""
    lists, current = {}, None
    for line in _lines(name):
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            head, line = line.split(":", 1)
            current = lists.setdefault(head, [])
        current += [word.strip() for word in line.rstrip(",").split(",")]
    return lists


@cache
def load_beats(name):
    """Read "# section" blocks: beats parted by empty lines, one alternative a line."""
    sections, beats = {}, None
    for line in _lines(name):
        if line.startswith("# "):
            beats = sections.setdefault(line[2:].strip(), [[]])
        elif not line.strip():
            if beats and beats[-1]:
                beats.append([])
        elif beats is not None:
            beats[-1].append(line.strip())
    return {name: [beat for beat in beats if beat] for name, beats in sections.items()}


def asks(name):
    """One list of templates out of grammar/asks.txt."""
    return load_beats("asks.txt")[name][0]


@cache
def load_exchanges(name):
    """Read blocks of "U:" questions, "A:" answers and "V:" verses ("/" parts lines).

    Returns a list of dicts of lists with the keys U, A and V, and "name" and
    "weight" out of the block's "# name weight" line, where it has one.
    """
    blocks = []
    for line in _lines(name):
        if line.startswith("# "):
            title, _, weight = line[2:].partition(" ")
            blocks.append({"name": title, "weight": float(weight or 1), "U": [], "A": [], "V": []})
        elif blocks and line[:2] in ("U:", "A:", "V:"):
            text = line[2:].strip()
            if line[0] == "V":
                text = re.sub(r" */ *", "\n", text)
            blocks[-1][line[0]].append(text)
    return blocks


@cache
def load_pairs(name):
    """Read "left = right" lines, grouped under "# section" lines."""
    sections, current = {}, None
    for line in _lines(name):
        if line.startswith("# "):
            current = sections.setdefault(line[2:].strip(), [])
        elif current is not None and "=" in line:
            left, right = line.split("=", 1)
            current.append((left.strip(), right.strip()))
    return sections
