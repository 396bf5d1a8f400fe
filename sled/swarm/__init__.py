"""Fleets of devices in one process, for tests and load: paced as real boards are, at no cost for the CPU."""
