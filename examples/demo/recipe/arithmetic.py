"""Exchanges about numbers and the calendar."""

from asking import user_line
from exchange import fact, kind
from grammar import asks, fill

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()


@kind(12)
def sums(rng, memory):
    sign = rng.choice("++++--**/")
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if sign == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
    elif sign == "/":
        b, quotient = rng.randint(1, 10), rng.randint(0, 10)
        a = b * quotient
    elif sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
    word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    wordy = max(a, b) <= 20 and rng.random() < 0.2
    left, right = (NUMBERS[a], NUMBERS[b]) if wordy else (str(a), str(b))
    spaced = rng.choice((f"{left} {word} {right}", f"{left} {sign} {right}", f"{left} {word} {right}"))
    if not wordy and rng.random() < 0.3:
        spaced = f"{a}{sign}{b}"
    asked = fill(asks("sum_ask")[0], rng, {"sum": spaced}).strip()
    if sign == "+" and rng.random() < 0.25:
        asked = fill(
            rng.choice(
                (
                    f"Add {a} and {b}",
                    f"What is the sum of {a} and {b}",
                    f"I have {a} apples and get {b} more. How many do I have",
                    f"If I have {a} eggs and buy {b} more, how many eggs do I have",
                    f"How much is {a} and {b}",
                )
            ),
            rng,
            {},
        )
    elif sign == "-" and rng.random() < 0.2:
        asked = rng.choice(
            (f"Take {b} away from {a}", f"I have {a} apples and eat {b}. How many are left", f"Subtract {b} from {a}")
        )
    answer = rng.choice(
        (
            f"{a} {word} {b} is {result}.",
            f"{a} {word} {b} is {result}.",
            f"That is {result}: {a} {word} {b} is {result}.",
        )
    )
    return fact(rng, user_line(rng, asked[0].upper() + asked[1:], {}), answer)


@kind(1.5)
def big_sums(rng, memory):
    a, b = rng.randint(100, 99999), rng.randint(20, 9999)
    start = rng.choice(("What is", "How much is", "Calculate", "Compute"))
    asked = f"{start} {a} {rng.choice(('+', '-', 'times', '*', 'divided by'))} {b}?"
    answer = rng.choice(("These numbers are too big for me.", "Oh, that is too big for a small model like me."))
    return fact(
        rng, asked, answer, rng.choice(("I can only work with small numbers.", "Please try it with smaller numbers."))
    )


@kind(4)
def counting(rng, memory):
    roll = rng.random()
    if roll < 0.25:
        n = rng.randint(3, 20)
        start = rng.choice(("Count to", "Please count to", "Can you count to", "Count up to", "Count from 1 to"))
        return fact(
            rng,
            f"{start} {rng.choice((str(n), NUMBERS[n]))}.",
            ", ".join(str(i) for i in range(1, n + 1)) + ".",
        )
    if roll < 0.5:
        n = rng.randint(0, 30)
        side, result = rng.choice((("after", n + 1), ("before", max(n - 1, 0))))
        return fact(
            rng,
            f"{rng.choice(('What comes', 'Which number comes', 'What number is'))} {side} {n}?",
            f"{result} comes {side} {n}.",
        )
    if roll < 0.7:
        n = rng.randint(0, 50)
        return fact(
            rng,
            rng.choice(
                (f"Is {n} odd or even?", f"Is {n} an even number?", f"Is {n} odd?", f"Is the number {n} even or odd?")
            ),
            f"{n} is {'odd' if n % 2 else 'even'}.",
        )
    if roll < 0.85:
        a, b = rng.sample(range(0, 100), 2)
        return fact(
            rng,
            rng.choice(
                (f"What is bigger, {a} or {b}?", f"Which number is larger, {a} or {b}?", f"Is {a} more than {b}?")
            ),
            f"{max(a, b)} is bigger than {min(a, b)}.",
        )
    n = rng.randint(1, 20)
    word, value = rng.choice((("half of", n), ("the half of", n), ("double", 4 * n)))
    return fact(rng, f"What is {word} {2 * n}?", f"{word.capitalize()} {2 * n} is {value}.")


@kind(3)
def calendar(rng, memory):
    names, noun = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    at = rng.randrange(len(names))
    side = rng.choice(("after", "before"))
    other = names[(at + (1 if side == "after" else -1)) % len(names)]
    return fact(
        rng,
        rng.choice(
            (
                f"What {noun} comes {side} {names[at]}?",
                f"Which {noun} is {side} {names[at]}?",
                f"What comes {side} {names[at]}?",
                f"What is the {noun} {side} {names[at]}?",
            )
        ),
        f"{other} comes {side} {names[at]}.",
    )
