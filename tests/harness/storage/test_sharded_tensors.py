import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.distributed.parallel import row_range
from harness.optim.sharded_optimizer import assign_owners
from harness.storage.sharded_tensors import ShardReader, TensorShard, merge_indices, unsharded, write_shards


@pytest.mark.parametrize(("rows", "world"), [(10, 3), (2, 4), (8, 4), (1, 1)])
def test_rows_are_split_as_torch_splits_them(rows, world):
    split = [chunk.tolist() for chunk in torch.arange(rows).chunk(world)]
    split += [[]] * (world - len(split))
    assert [list(range(*row_range(rows, rank, world))) for rank in range(world)] == split


@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_any_rows_come_back_whoever_wrote_them(tmp_path_factory, rows, world, data):
    folder = tmp_path_factory.mktemp("shards")
    tensor = torch.randn(rows, 3)
    parts = []
    for rank in range(world):
        start, stop = row_range(rows, rank, world)
        piece = TensorShard(tensor=tensor[start:stop], first_row=start, shape=(rows, 3))
        parts.append(write_shards(folder / f"{rank}.safetensors", {"w": piece}))
    reader = ShardReader(folder, merge_indices(parts))
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert torch.equal(reader.rows("w", start, stop), tensor[start:stop])
    assert torch.equal(reader.tensor("w"), tensor)


def test_scalars_and_missing_rows(tmp_path):
    half = TensorShard(tensor=torch.ones(2, 3), first_row=0, shape=(4, 3))
    index = write_shards(tmp_path / "one.safetensors", {"steps": unsharded(torch.tensor(7)), "w": half})
    reader = ShardReader(tmp_path, index)
    assert reader.tensor("steps") == 7
    with pytest.raises(KeyError, match="rows 0 to 4 are missing from the files"):
        reader.tensor("w")


def test_owners_carry_equal_loads():
    sizes = {f"m{i}": size for i, size in enumerate([40, 30, 20, 20, 10])}
    owners = assign_owners(sizes, 2)
    # By hand: 40 | 30, 20 to the second (50), 20 to the first (60), 10 to the second (60).
    assert [owners[f"m{i}"] for i in range(5)] == [0, 1, 1, 0, 1]
    assert set(assign_owners({"only": 5}, 4).values()) == {0}


def test_what_is_read_lies_where_torch_puts_its_own(tmp_path):
    """On AVX2, MKL's products end in other bits where an operand does not begin at a multiple of 64 bytes."""
    tensors = {f"t{rows}": torch.randn(rows, 13) for rows in range(7, 13)} | {"steps": torch.tensor(7)}
    index = write_shards(
        tmp_path / "one.safetensors", {name: unsharded(tensor) for name, tensor in tensors.items()}
    )
    reader = ShardReader(tmp_path, index)
    assert [reader.tensor(name).data_ptr() % 64 for name in tensors] == [0] * len(tensors)
    rows = [reader.rows(name, 1, 5) for name in tensors if name != "steps"]
    assert [part.data_ptr() % 64 for part in rows] == [0] * len(rows)
