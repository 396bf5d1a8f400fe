"""Twenty prompts of four kinds: chat, code, copying, story."""

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
