"""The attention kernel's own tests, with the kernels run on emulated ARM CPUs."""

from tests.compiler.test_attention import *  # noqa: F403 - conftest.py keeps those that run a kernel
