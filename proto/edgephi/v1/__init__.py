"""The contract: generated messages and stubs of edgephi.v1."""
