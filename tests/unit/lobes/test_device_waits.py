"""A forward on a GPU never waits: counted on tensors that only pretend.

Fake tensors run no kernel but know their device, so no GPU is needed. Where a
copy between devices blocks, or a value is read, the host waits for all that it
has launched, and the GPU then waits for the host. Fake tensors refuse to be
read; the census finds the copies.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from summarymixing import SummaryMixing, Wav2Vec2Encoder
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)

aten = torch.ops.aten
REFUSALS = (DataDependentOutputException, DynamicOutputShapeException)


class Census(TorchDispatchMode):
    """Lists the copies for which the host waits, and counts operations."""

    def __init__(self):
        super().__init__()
        self.waits, self.operations = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        self.operations += 1
        packet = operation.overloadpacket
        if packet in (aten.copy_, aten._to_copy):
            source = args[1] if packet is aten.copy_ else args[0]
            # copy_(target, source, non_blocking); _to_copy has keywords.
            blocks = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            if blocks and source.device != result.device:
                self.waits.append(f"{operation} of {tuple(source.shape)}")
        return result


@pytest.fixture
def cuda_autocast():
    """Switch it on; `torch.autocast` would look for a GPU."""
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", dtype)
    torch.clear_autocast_cache()


def to_cuda(module):
    """Move weights and buffers; fake ones cannot be moved by `to`."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(weight.to("cuda")))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to("cuda"))
    return module


def forward_on_cuda(num_utterances=2, train=True):
    """Return the census of a forward, and the types of the layers' inputs."""
    encoder = Wav2Vec2Encoder(
        mixer=partial(SummaryMixing, num_heads=2),
        num_layers=3,
        d_model=16,
        d_ffn=32,
        kernel_size=5,
        layer_drop=0.0,  # is drawn on the host
        num_mels=20,
        front_end_channels=8,
    )
    model = Wav2Vec2Pretraining(encoder, num_codes=8, target_dim=8)
    model = to_cuda(model).train(train)
    dtypes = []
    for layer in encoder.conformer.layers:
        layer.register_forward_pre_hook(
            lambda _, inputs: dtypes.append(inputs[0].dtype)
        )
    wavs = torch.zeros(num_utterances, 16_000, device="cuda")
    masked = gather_masked_frames(
        [range(5, 45)] * num_utterances,
        num_frames(wavs.shape[1]),
        range(num_utterances),
    )
    masked = masked._make(
        x.to("cuda") if torch.is_tensor(x) else x for x in masked
    )
    wav_lens = torch.ones(num_utterances, device="cuda")
    with Census() as census:
        out = model(wavs, wav_lens, masked, temperature=1.0)
    assert out.loss.device.type == "cuda"
    assert out.loss.dtype == torch.float32
    return census, dtypes


@pytest.mark.parametrize("train", [True, False])
def test_a_forward_does_not_wait_for_the_device(train, cuda_autocast):
    with FakeTensorMode():
        census, _ = forward_on_cuda(train=train)
    assert census.operations > 100
    assert census.waits == []


def test_all_layers_have_inputs_of_one_type(cuda_autocast):
    """Another one would be compiled for itself, and hold coarse positions."""
    with FakeTensorMode():
        _, dtypes = forward_on_cuda()
    assert dtypes == [torch.float32] * 3


def test_operations_do_not_grow_with_the_batch(cuda_autocast):
    with FakeTensorMode():
        few, many = (forward_on_cuda(n)[0].operations for n in (2, 50))
    assert few == many


def test_the_census_finds_what_waits():
    with FakeTensorMode(), Census() as census:
        x = torch.zeros(3, device="cuda")
        torch.zeros(3).to("cuda")
        x.copy_(torch.zeros(3))
        torch.zeros(3).to("cuda", non_blocking=True)
        x.copy_(torch.zeros(3), non_blocking=True)
        for read in (x.sum().item, x.nonzero, x.unique):
            with pytest.raises(REFUSALS):
                read()
    assert len(census.waits) == 2
