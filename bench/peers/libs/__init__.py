"""One module for each library that is measured; contract.py says what each offers."""
