"""The demo of `make demo`: real processes, a real target, real sockets, and a proof by another implementation."""
