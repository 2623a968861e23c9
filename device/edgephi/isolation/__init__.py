"""Runs an engine in a process of its own, so that its crash, hang or lack of memory is not the server's."""
