"""How tensors are packed into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgephi.artifact.manifest import verify_model
from edgephi.artifact.shards import ShardWriter
from edgephi.artifact.weights import open_weights


def test_large_tensor_gets_its_own_file_and_the_open_one_goes_on(tmp_path: Path) -> None:
    """A tensor of half the cap that does not fit is written alone; those around it share the other file."""
    writer = ShardWriter(tmp_path, cap_bytes=100)
    for name, size in (("a", 60), ("big", 50), ("b", 30), ("c", 20)):
        writer.add(name, np.full(size, len(name), np.uint8))
    writer.finish(num_source_params=160)
    manifest = verify_model(tmp_path)
    assert [[tensor.name for tensor in shard.tensors] for shard in manifest.shards] == [["big"], ["a", "b"], ["c"]]
    assert [tensor.offset for tensor in manifest.shards[1].tensors] == [0, 60]


@settings(max_examples=40, deadline=None)
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(["uint8", "float16", "uint32", "float32"]), st.integers(0, 60)), max_size=12
    )
)
def test_whatever_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, int]]
) -> None:
    """Any list of tensors survives; float32 values that are bfloat16 come back exactly; shards obey the cap."""
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, cap_bytes=64)
    written = {f"t{index}": np.arange(size).astype(dtype) for index, (dtype, size) in enumerate(tensors)}
    for name, tensor in written.items():
        writer.add(name, tensor)
    writer.finish(num_source_params=1)
    manifest = verify_model(folder)
    assert all(shard.nbytes < 64 or len(shard.tensors) == 1 for shard in manifest.shards)
    with open_weights(folder) as weights:
        assert set(weights.names()) == set(written)
        for name, tensor in written.items():
            found = weights.get(name)
            assert found.dtype == tensor.dtype
            np.testing.assert_array_equal(found, tensor)
