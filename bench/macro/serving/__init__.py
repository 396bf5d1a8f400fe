"""Tokens per second of a server on the CPU, beside transformers' continuous batching and llama.cpp's server.

`python -m bench.macro.serving` measures everything and writes bench/results/serving.json; `cells` says what
is measured.
"""
