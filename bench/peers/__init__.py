"""edgebus beside other ways to carry the same bytes, in one run on one machine: `python -m bench.peers.run`.

libs/       one module for each library: how it serves, how it connects
workloads/  what is measured, in terms of the interface in contract.py alone
child.py    a process that is a server or a device; processes.py starts and asks it
"""
