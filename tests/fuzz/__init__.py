"""Fuzzing of everything that reads what others wrote: hypothesis in the test suite, atheris with `tests.fuzz.run`."""
