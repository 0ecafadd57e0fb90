"""Write small data sets of four tasks whose answers follow from a rule: python docs/scripts/task_sets.py tasks.

Each task gets a folder with train.jsonl and test.jsonl; no record is in both.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]
NUMBERS += ["sixteen", "seventeen", "eighteen"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
THINGS = ["film", "book", "song", "meal", "hotel", "game", "play", "story", "museum", "concert"]
GOOD = ["good", "great", "lovely", "brilliant", "superb", "charming"]
BAD = ["bad", "awful", "dull", "boring", "terrible", "dreadful"]
NOUNS = ["cat", "dog", "sun", "moon", "tree", "fish", "bird", "rock"]

Record = dict[str, object]


def arithmetic() -> Iterator[Record]:
    """Sums of two numbers below ten, written as words: prompts and completions."""
    forms = [
        "{} plus {} is",
        "{} and {} make",
        "add {} to {}:",
        "the sum of {} and {} is",
        "{} + {} =",
        "{} more than {} is",
    ]
    for form, one, other in product(forms, range(10), range(10)):
        yield {"prompt": form.format(NUMBERS[one], NUMBERS[other]), "completion": f" {NUMBERS[one + other]}"}


def sentiment() -> Iterator[Record]:
    """Reviews with a label, which follows from the adjective and is inverted by a "not" before it."""
    forms = ["The {} was {}.", "What I saw was a {} that is {}!", "I found the {} {}."]
    for form, thing, negated, good in product(forms, THINGS, (False, True), (False, True)):
        for adjective in GOOD if good else BAD:
            text = form.format(thing, f"not {adjective}" if negated else adjective)
            yield {"text": text, "label": "positive" if good != negated else "negative"}


def reversing() -> Iterator[Record]:
    """Lists of words, whose last two are the output, the last one first: instruction, input and output."""
    for words in product(NOUNS, repeat=4):
        if len(set(words)) == 4:
            instruction = "The last two, last first:"
            yield {"instruction": instruction, "input": " ".join(words), "output": f"{words[3]} {words[2]}"}


def dates() -> Iterator[Record]:
    """Dates to be written in another form: conversations of one question and its answer."""
    for year, month, day in product(range(1990, 2030), range(1, 13), range(1, 29)):
        asked, answer = f"{year}-{month:02}-{day:02}", f"{day} {MONTHS[month - 1]} {year}"
        yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


TASKS: dict[str, Callable[[], Iterator[Record]]] = {
    "arithmetic": arithmetic,
    "sentiment": sentiment,
    "reversing": reversing,
    "dates": dates,
}


def write_task(name: str, folder: Path, train: int = 2000, test: int = 100) -> Path:
    """Write train.jsonl and test.jsonl of a task into a new folder; at most ``train`` records to train on."""
    records = list(TASKS[name]())
    random.Random(0).shuffle(records)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("test", records[:test]), ("train", records[test : test + train])):
        lines = (json.dumps(record) for record in chosen)
        (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


if __name__ == "__main__":
    for task in TASKS:
        print(write_task(task, Path(sys.argv[1] if len(sys.argv) > 1 else "tasks")))
