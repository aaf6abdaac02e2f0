"""A container's log: how it is encoded, what its files are called, and the one reader of all of them.

The shim writes with it and replays to its clients; dockerd-api reads with it. Standard library only.
"""
