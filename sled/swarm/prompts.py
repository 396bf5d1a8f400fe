"""What a fleet asks if it is not told: questions that all differ after the template's beginning. Pure."""

from __future__ import annotations

_QUESTIONS = (
    "Why is the sky blue?",
    "What is the difference between weather and climate?",
    "Give me three tips for sleeping better.",
    "Explain photosynthesis to a ten-year-old.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Show me how to read a CSV file in Python.",
    "Write a SQL query that counts orders per customer.",
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
    "Turn this into a list, one item per line: red, orange, yellow, green, blue.",
    "Write a short story about a fox who learns to swim.",
    "Tell me a story about a lighthouse keeper and a storm.",
    "Write a poem about autumn leaves.",
)


def questions(count: int) -> list[str]:
    """So many different questions.

    >>> questions(13)[12]
    'Question 12. Why is the sky blue?'
    """
    return [f"Question {number}. {_QUESTIONS[number % len(_QUESTIONS)]}" for number in range(count)]
