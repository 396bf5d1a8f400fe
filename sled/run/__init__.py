"""Thin shells: they own the bus, the model and the clock; every decision is made by the pure machines."""
