"""Checkpoints: a running container's processes written to a folder by CRIU, and made again from it.

`dump` writes, `restore` makes; both talk to one `criu swrk` process (`criu`) in the messages of its public
protocol (`messages`).
"""
