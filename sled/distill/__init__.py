"""Make a drafter for a target that has none: the target writes a corpus, a small model learns its distribution.

torch and transformers are imported by `sled.distill.run` and what it needs, never here.
"""
