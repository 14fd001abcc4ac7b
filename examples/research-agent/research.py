"""An agent that answers a question from documents: it plans, reads them side by side, and writes.

It needs no model and no network, so that it runs anywhere; a real one would ask a model where this
one counts words. What matters is the shape: ordinary asyncio, a log that tells what it is doing,
and an eye on the deadline.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from spear_sdk import Context, InvalidInputError, function

COMMON = {"does", "from", "that", "this", "were", "what", "when", "which", "with"}
SPARE = 0.2
"""Share of the time that is kept for writing the answer."""


@dataclass(frozen=True)
class Note:
    """A sentence worth quoting."""

    score: float
    document: str
    sentence: str


@function
async def research(text: str, context: Context) -> str:
    """Answer the question in the first line from the documents below it.

    The input is ``Question: …``, then documents, each under a line ``# Title``.
    """
    question, documents = understand(text)
    clues = plan(question)
    context.log.info("looking for %s in %d documents", ", ".join(sorted(clues)), len(documents))
    notes: list[Note] = []
    left = context.remaining
    try:
        async with asyncio.timeout(None if left is None else left * (1 - SPARE)):
            async with asyncio.TaskGroup() as readers:
                for title, body in documents.items():
                    readers.create_task(read(title, body, clues, notes, context))
    except TimeoutError:
        context.log.warn("out of time: answering with what has been read")
    return write(question, notes)


def understand(text: str) -> tuple[str, dict[str, str]]:
    """Take the question and the documents apart."""
    first, _, rest = text.partition("\n")
    if not first.startswith("Question:"):
        raise InvalidInputError('the first line must be "Question: …"')
    parts = re.split(r"^# (.+)$", rest, flags=re.MULTILINE)
    return first.removeprefix("Question:").strip(), dict(zip(parts[1::2], parts[2::2], strict=True))


def plan(question: str) -> set[str]:
    """The words to look for."""
    words = re.findall(r"[a-z']+", question.lower())
    return {stem(word) for word in words if len(word) > 3 and word not in COMMON}


def stem(word: str) -> str:
    """A crude stem: "peoples" and "people's" count as "people"."""
    return re.sub(r"(?:ing|ed|es|s)$", "", word.removesuffix("'s"))


async def read(title: str, body: str, clues: set[str], notes: list[Note], context: Context) -> None:
    """Read one document and note the sentences that have to do with the question."""
    found = 0
    for sentence in re.split(r"(?<=[.!?])\s+", body.strip()):
        words = [stem(word) for word in re.findall(r"[a-z']+", sentence.lower())]
        hits = clues.intersection(words)
        if hits:
            found += 1
            notes.append(Note(len(hits) + len(hits) / len(words), title, sentence))
        await asyncio.sleep(0)  # a real agent would wait for a model here
    context.log.info("%s: %d passages", title, found)


def write(question: str, notes: list[Note]) -> str:
    """The answer, best passages first."""
    if not notes:
        return f"{question}\n\nNothing in these documents answers that.\n"
    best = sorted(notes, key=lambda note: -note.score)[:3]
    return f"{question}\n\n" + "".join(f"- {n.sentence}\n  ({n.document})\n" for n in best)
