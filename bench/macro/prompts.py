"""Twenty prompts of four kinds: chat, code, copying, story; and a hundred of five, for those who need many."""

from __future__ import annotations

CHAT = (
    "Why is the sky blue?",
    "What is the capital of France, and what is it known for?",
    "Give me three tips for sleeping better.",
    "Explain photosynthesis to a ten-year-old.",
    "What is the difference between weather and climate?",
)
CODE = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Python function that checks whether a string is a palindrome.",
    "Show me how to read a CSV file in Python.",
    "Write a SQL query that counts orders per customer.",
    "Write a bash script that renames all .txt files to .md.",
)
COPYING = (
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
    "Copy this list exactly: apples, bananas, cherries, dates, elderberries, figs, grapes.",
    "Correct the spelling and repeat the sentence: The wether was beutiful and the childrens played outside.",
    "Turn this into a list, one item per line: red, orange, yellow, green, blue, indigo, violet.",
    "Repeat these numbers in the same order: 3, 14, 15, 92, 65, 35, 89, 79.",
)
STORY = (
    "Write a short story about a fox who learns to swim.",
    "Tell me a story about a lighthouse keeper and a storm.",
    "Write a poem about autumn leaves.",
    "Begin a detective story set in an old library.",
    "Write a dialogue between the sun and the moon.",
)
PROMPTS = (*CHAT, *CODE, *COPYING, *STORY)

_SUBJECTS = ("rivers", "volcanoes", "bees", "the moon", "bicycles", "bread", "chess", "glass", "clouds", "trains")
_ASKED = ("How are {} made or formed?", "Why do people care about {}?")
_TASKS = ("sorts a list", "counts words", "finds primes", "reverses a string", "merges two lists", "parses a date")
_LANGUAGES = ("Python", "Rust", "JavaScript")
_PLACES = ("a desert", "a space station", "an old mill", "a market", "a snowed-in train", "a garden")
_READ = (
    "Read this note and answer in one sentence. The harbour office opens at seven in summer and at nine in winter. "
    "Boats longer than twelve metres need a permit, which costs forty crowns and lasts one season. Dogs are welcome on "
    "the north pier only. The lighthouse keeper, Ms. Holm, lends out charts; bring them back within three days. {}"
)
_NOTES = (
    "When does the office open in winter?",
    "What does a permit cost?",
    "Where may dogs walk?",
    "Who lends out charts?",
    "How long does a permit last?",
    "Which boats need a permit?",
    "When must charts be back?",
    "Is the office open at eight in summer?",
    "What is the keeper called?",
    "May a dog walk on the south pier?",
)


def hundred() -> list[str]:
    """The twenty, and eighty made from patterns: questions, code, copying, stories, and notes that begin alike."""
    chat = [asked.format(subject) for subject in _SUBJECTS for asked in _ASKED]
    code = [f"Write a {language} function that {task}." for task in _TASKS for language in _LANGUAGES]
    words = [f"{a} {b}" for a, b in zip(_SUBJECTS, reversed(_TASKS * 2), strict=False)]
    copying = [f"Repeat this {n + 2} times: {', '.join(words[n:] + words[:n])}" for n in range(10)]
    story = [f"Tell a story about {a} in {b}." for a, b in zip(_SUBJECTS * 3, _PLACES * 4, strict=False)][:22]
    notes = [_READ.format(question) for question in _NOTES]
    return [*PROMPTS, *chat, *code, *copying, *story, *notes]
