"""The node as a daemon: what `edgebus node` runs. See docs/guide/daemon.md."""
