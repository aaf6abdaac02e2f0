"""Containers out of namespaces, mounts and control groups: the library behind `runc-bin`.

`create` is the parent's side and `init` the child's of a new container, `exec_in` both sides of a further
process, `container` what is done to one that exists, `state` its record on disk.
"""
