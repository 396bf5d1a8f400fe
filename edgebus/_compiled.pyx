# cython: language_level=3
# cython: freethreading_compatible=False
"""The shared object with all modules of the bus that are compiled; see forms.py, which finds them in it."""
