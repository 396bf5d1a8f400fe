"""Shells: a server and a device over the bus."""
