"""Traced memory against what is really allocated, and against CUDA's types."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from summarymixing import ConformerEncoderLayer, MultiHeadAttention
from summarymixing.cost.memory import (
    LiveMemory,
    fake_training,
    kept_for_backward,
    make_states,
    make_update,
    measure_peak,
    trace_update,
)
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.pretraining import (
    Wav2Vec2Pretraining,
    gather_masked_frames,
)
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from tests import reference


def make_batch(size=6, seconds=10):
    frames = num_frames(16_000 * seconds)
    masked = [range(5, frames // 2)] * size
    return (
        torch.rand(size, 16_000 * seconds),
        torch.ones(size),
        gather_masked_frames(masked, frames, range(size)),
    )


def make_training(batch, share, dropout=0.1):
    """Return the arguments of `trace_update`."""
    torch.manual_seed(1)
    encoder = Wav2Vec2Encoder(
        num_layers=3, d_model=64, d_ffn=256, layer_drop=0.0, dropout=dropout
    )
    encoder.conformer.recompute_share(share)
    model = Wav2Vec2Pretraining(encoder, target_dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return model, optimizer, lambda: model(*batch, temperature=2.0).loss


@pytest.mark.parametrize("share", [0, 0.6, 0.8, 1])
def test_the_traced_peak_is_that_of_a_real_update(share):
    batch = make_batch()
    with fake_training("cpu") as fake:
        traced = trace_update(
            *make_training(
                tree_map(
                    lambda x: (
                        fake.from_tensor(x)
                        if isinstance(x, torch.Tensor)
                        else x
                    ),
                    batch,
                ),
                share,
            )
        )
    training = make_training(batch, share)
    make_states(training[1])
    update = partial(make_update, *training, accumulation=2)
    measured = traced.at_rest + measure_peak(update, torch.device("cpu"))
    assert traced.peak == pytest.approx(measured, rel=0.03)


def test_live_memory_ends_where_it_began():
    training = make_training(make_batch(2, 2), share=0.6)
    make_states(training[1])
    make_update(*training)
    with LiveMemory() as memory:
        make_update(*training)
    assert memory.live < 100  # loss and norm are read after the update
    assert memory.peak > 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_the_graph_saves(dtype):
    layer = ConformerEncoderLayer(8, d_ffn=16, kernel_size=5)
    x = torch.randn(2, 7, 8)
    parameters = {p.untyped_storage()._cdata for p in layer.parameters()}

    def run():
        # Without its cache autocast keeps no weight that nothing saves.
        with torch.autocast(
            "cpu", torch.bfloat16, dtype == torch.bfloat16, cache_enabled=False
        ):
            return layer(x)

    saved = [
        tensor
        for tensor in reference.saved_for_backward(run)
        if tensor.untyped_storage()._cdata not in parameters
        and tensor.untyped_storage()._cdata != x.untyped_storage()._cdata
    ]
    assert kept_for_backward(run) == reference.num_bytes(saved)


@pytest.mark.parametrize("is_padded", [False, True])
def test_fake_training_has_the_types_of_cuda(is_padded, monkeypatch):
    """A forward pass of fake CUDA tensors needs no driver."""
    monkeypatch.setattr(
        torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    def kept(device):
        layer = ConformerEncoderLayer(64, d_ffn=128)
        for module in layer.modules():  # fake weights cannot be moved
            for name, weight in module.named_parameters(recurse=False):
                moved = torch.nn.Parameter(
                    torch.ones_like(weight, device=device)
                )
                setattr(module, name, moved)
        x = torch.randn(2, 50, 64, device=device)
        mask = torch.zeros(2, 50, dtype=torch.bool, device=device)
        with torch.autocast(device, torch.bfloat16):
            return kept_for_backward(
                lambda: layer(x, mask if is_padded else None)
            )

    with FakeTensorMode():
        expected = kept("cuda")
    with fake_training():
        assert kept("cpu") == expected


def test_fused_attention_keeps_no_weights():
    layer = ConformerEncoderLayer(8, mixer=MultiHeadAttention, d_ffn=16)
    with fake_training():
        kept = [
            kept_for_backward(partial(layer, torch.randn(1, frames, 8)))
            for frames in (1000, 2000)
        ]
    assert kept[1] < 2.1 * kept[0]
