"""What is measured; each module has `measure(scale)` and `figures(results)`."""
