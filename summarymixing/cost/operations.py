"""Multiply-adds of the model, counted exactly and without running it.

The real modules run on tensors without content; each matrix product,
convolution and attention is counted by its shapes. What is elementwise, and
the Fourier transform, is not counted, as in all published counts. One
multiply-add is two floating-point operations (FLOP).
Letters: B utterances, T frames, N masked frames of the batch, M of its longest
utterance.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from summarymixing.cost.memory import fake_tensors
from summarymixing.lobes.features import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from summarymixing.lobes.pretraining import Wav2Vec2Pretraining
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.losses import contrastive_loss

Model = TypeVar("Model", bound=nn.Module)

# Dense FLOP per second with bf16 inputs and float32 sums, from NVIDIA's data
# sheets, by a part of the name that torch gives. The first match counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX A6000": 155e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,  # fp16: it has no bf16
    "T4": 65e12,  # fp16
}

COUNTED_UTTERANCES = (2, 3)
COUNTED_FRAMES = (200, 400, 800)


def peak_flops(device_name: str) -> float | None:
    """Return a GPU's published dense bf16 FLOP per second, None if unknown.

    Example
    -------
    >>> peak_flops("NVIDIA A100-SXM4-80GB")
    312000000000000.0
    """
    known = (flops for name, flops in PEAK_FLOPS.items() if name in device_name)
    return next(known, None)


def count_multiply_adds(step: Callable[[], object]) -> int:
    """Run a function and count the multiply-adds of its tensor operations.

    What a backward pass computes again counts again. Attention counts as its
    two matrix products, forward, and four, backward, with any kernel that
    torch lists; torch's kernel for CPUs is not among them, so a `step` on the
    CPU should run under `sdpa_kernel(SDPBackend.MATH)`.

    Example
    -------
    >>> count_multiply_adds(lambda: torch.rand(2, 3) @ torch.rand(3, 5))
    30
    """
    corrected: Any = {
        torch.ops.aten.convolution_backward: _convolution_backward
    }
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        step()
    return counter.get_total_flops() // 2


def _convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each gradient costs what the forward pass costs, in FLOP.

    torch's own formula takes no notice of groups.
    """
    positions = x if transposed else grad_out
    return 2 * prod(positions) * prod(weight[1:]) * sum(output_mask[:2])


@contextmanager
def without_content(model: Model) -> Iterator[Model]:
    """Copy a module with fake tensors, of the CPU, in place of its weights.

    Inside `with`, only shapes are computed, and attention is counted as the
    products it is made of.

    Yields
    ------
    nn.Module
        The copy; the module given stays as it is.
    """
    with fake_tensors(), sdpa_kernel(SDPBackend.MATH):
        fakes: dict[int, Any] = {}
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            fake = torch.empty_like(tensor, device="cpu")
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            fakes[id(tensor)] = fake
        with unset_fake_temporarily():  # what is no buffer keeps its values
            traced = copy.deepcopy(model, fakes)
        yield traced


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of a batch as an exact function of its sizes.

    Arguments
    ---------
    by_size : mapping of (int, int) to Fraction
        What an encoder takes for (utterances, frames) of six batches. All
        others follow, since the count is linear in utterances and at most
        quadratic in frames.
    per_masked_frame, per_masked_pair : Fraction
        What quantiser and losses take for each masked frame, and for each
        pair of (padded) masked frames of an utterance.
    """

    by_size: Mapping[tuple[int, int], Fraction]
    per_masked_frame: Fraction = Fraction(0)
    per_masked_pair: Fraction = Fraction(0)

    def __call__(
        self, utterances: int, frames: int, masked: int = 0, widest: int = 0
    ) -> int:
        """Return the multiply-adds of a batch, padding included.

        Arguments
        ---------
        utterances, frames : int
            B and T of the padded batch.
        masked, widest : int
            Masked frames N of the batch, and M of its longest utterance.
        """
        count = sum(
            value
            * _lagrange(utterances, b, COUNTED_UTTERANCES)
            * _lagrange(frames, t, COUNTED_FRAMES)
            for (b, t), value in self.by_size.items()
        )
        count += self.per_masked_frame * masked
        count += self.per_masked_pair * utterances * widest**2
        return round(count)


def training_operations(model: Wav2Vec2Pretraining) -> Operations:
    """Count forward and backward of pre-training, once for all batches.

    Takes two seconds. Layers that layer drop is expected to leave out are
    not counted; nor is what is computed a second time to save memory.

    Example
    -------
    >>> from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
    >>> encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    >>> count = training_operations(Wav2Vec2Pretraining(encoder, target_dim=8))
    >>> count(utterances=2, frames=100, masked=80, widest=50)
    613858099
    """
    with without_content(model) as traced:
        traced.train()
        one, two = (_count_objective(traced, masked) for masked in (1, 2))
    pair = Fraction(two - 2 * one, 2)  # of one * m + pair * m**2
    return replace(
        encoder_operations(model.encoder, backward=True),
        per_masked_frame=one - pair,
        per_masked_pair=pair,
    )


def encoder_operations(
    encoder: Wav2Vec2Encoder, *, backward: bool = False
) -> Operations:
    """Count an encoder from audio to its last layer.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        Its layers must be alike; the first is counted.
    backward : bool
        Count forward and backward of training, with layer drop, instead of
        the forward pass alone.
    """
    num_layers = len(encoder.conformer.layers)
    kept = 1 - (encoder.conformer.layer_drop if backward else 0)
    expected_layers = num_layers * Fraction(kept).limit_denominator(10**6)
    by_size = {}
    with without_content(encoder) as traced:
        traced.train(backward)
        layers = traced.conformer.layers
        traced.conformer.layer_drop = 0.0
        traced.conformer.recompute_share(0)
        for size in itertools.product(COUNTED_UTTERANCES, COUNTED_FRAMES):
            traced.conformer.layers = layers[:0]
            rest = _count_encoder(traced, *size, backward)
            traced.conformer.layers = layers[:1]
            layer = _count_encoder(traced, *size, backward) - rest
            by_size[size] = rest + expected_layers * layer
    return Operations(by_size)


def _count_encoder(
    encoder: Wav2Vec2Encoder, utterances: int, frames: int, backward: bool
) -> int:
    samples = (frames - 1) * SAMPLE_RATE_HZ // FRAMES_PER_SECOND
    # In float32 the CPU has kernels of its own, not all matrix products.
    bf16 = torch.autocast("cpu", torch.bfloat16)

    def step() -> None:
        with bf16, torch.set_grad_enabled(backward):
            latents, padding_mask = encoder.extract(
                torch.zeros(utterances, samples), torch.ones(utterances)
            )
            encoded = encoder.contextualise(latents, padding_mask)
        if backward:
            encoded.output.sum().backward()

    return count_multiply_adds(step)


def _count_objective(model: Wav2Vec2Pretraining, masked: int) -> int:
    """Count quantiser and loss of one utterance.

    They are called one by one: the model's own forward is a collective.
    """
    quantiser = model.quantiser

    def step() -> None:
        context = torch.zeros(
            masked, model.project.in_features, requires_grad=True
        )
        latents = torch.zeros(
            masked, quantiser.to_logits.in_features, requires_grad=True
        )
        noise = torch.zeros(masked, quantiser.num_groups, quantiser.num_codes)
        quantised = quantiser(latents, gumbel=noise)
        contrast = contrastive_loss(
            model.project(context)[None],
            quantised.targets[None],
            quantised.code_ids[None],
            torch.zeros(1, masked, model.num_negatives, dtype=torch.int64),
            padding_mask=torch.zeros(1, masked, dtype=torch.bool),
        )
        (contrast.loss + quantised.probability_sums.sum()).backward()

    return count_multiply_adds(step)


def _lagrange(at: int, node: int, nodes: Sequence[int]) -> Fraction:
    """Value at `at` of the polynomial that is 1 at `node`, 0 at the others."""
    others = [other for other in nodes if other != node]
    return Fraction(
        prod(at - other for other in others),
        prod(node - other for other in others),
    )
