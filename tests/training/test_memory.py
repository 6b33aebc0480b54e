"""The search for the rows of a pass: what it reserves, and what it does when they do not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from training.optim.memory import adam_state_like, find_micro_batch_rows
from training.settings import SettingsError

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 1 GiB"


def bytes_of(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.fixture
def two_processes():
    """The first of two processes, whose messages to the other are not sent."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


def state_bytes(model):
    """Bytes of the moments that AdamW has for the parameters of this process."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return bytes_of(getattr(moment, "_local_tensor", moment) for moment in moments)


def test_the_reserve_is_the_state_of_the_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 6))
    model[1].bias.requires_grad = False
    assert bytes_of(adam_state_like(model)) == state_bytes(model) == 2 * 4 * (8 * 16 + 16 + 16 * 6)


def test_the_reserve_of_a_sharded_model_is_that_of_one_process(two_processes):
    whole = torch.nn.Linear(64, 32)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    sharded = fully_shard(torch.nn.Linear(64, 32), mesh=mesh)
    assert bytes_of(adam_state_like(sharded)) == state_bytes(sharded) == bytes_of(adam_state_like(whole)) // 2


class Search:
    """A search on a device with memory for a number of rows.

    Args:
        fitting: Rows that fit.
        kind: Distribution over two processes.
    """

    def __init__(self, fitting, kind=DistributedType.NO):
        self.fitting, self.tried, self.reserves = fitting, [], []
        self.processes = 1 if kind == DistributedType.NO else 2
        self.accelerator = SimpleNamespace(
            num_processes=self.processes,
            distributed_type=kind,
            device=torch.device("meta"),
            no_sync=lambda model: torch.no_grad(),
            backward=None,
            gather=lambda rows: torch.tensor([self.tried[-1]]),
        )

    def backward(self, batch, targets, run):
        self.tried.append(targets)
        if targets > self.fitting:
            raise RuntimeError(OUT_OF_MEMORY)

    def rows(self):
        data = SimpleNamespace(row_tokens=8, rows=lambda epoch: [0], tensors=lambda rows: {}, targets=len)
        objective = SimpleNamespace(backward=self.backward)
        return find_micro_batch_rows(torch.nn.Linear(2, 2), objective, data, 16 * self.processes, self.accelerator)


def test_rows_are_halved_until_they_fit():
    search = Search(5)
    assert search.rows() == 4
    assert search.tried == [16, 8, 4]
    with pytest.raises(RuntimeError, match="out of memory"):
        Search(0).rows()


def test_the_state_is_reserved_while_rows_are_tried(monkeypatch):
    reserved = []
    monkeypatch.setattr(
        "training.optim.memory.adam_state_like", lambda model: reserved.append(model) or [torch.ones(1)]
    )
    Search(5).rows()
    assert len(reserved) == 1


def test_processes_of_a_sharded_model_do_not_search_apart():
    """Another process would wait in an exchange of parameters that this one has left."""
    search = Search(5, DistributedType.FSDP)
    with pytest.raises(SettingsError, match=r"16 rows do not fit .* Give --micro-batch-rows 8 or less\."):
        search.rows()
    assert search.tried == [16]
    assert Search(16, DistributedType.FSDP).rows() == 16
    assert Search(5, DistributedType.MULTI_GPU).rows() == 4
