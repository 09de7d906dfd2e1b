"""wav2vec 2.0 pre-training as one module whose forward returns the losses.

One module under DistributedDataParallel has one reducer and one forward: no
process can take a collective that another skips. Letters: B utterances, S
samples, T frames, N masked frames of the batch, M of the longest utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.gradients import scale_gradient
from summarymixing.nnet.losses import (
    contrastive_loss,
    diversity_loss,
    draw_negatives,
)
from summarymixing.nnet.masking import padding_mask_from_lengths
from summarymixing.nnet.quantiser import (
    GumbelQuantiser,
    Quantised,
    gumbel_noise,
)
from summarymixing.nnet.randomness import splitmix64


class MaskedFrames(NamedTuple):
    """The masked frames of a padded batch, known before the forward.

    They are drawn with the batch, on the CPU, so that no accelerator waits
    for a `nonzero` or for the copy of a list.
    """

    span_mask: Tensor  # (B, T), bool, True on masked frames
    frames: Tensor  # (N,), int64, positions in the flattened (B, T)
    padded_index: Tensor  # (N,), int64, positions in the flattened (B, M)
    counts: Tensor  # (B,), int64, masked frames that have negatives
    seeds: Tensor  # (B,), int64, of the negatives and Gumbel noise of each
    widest: int  # M, most masked frames of an utterance


def gather_masked_frames(
    masked: Sequence[Sequence[int] | NDArray[np.int64]],
    num_frames: int,
    seeds: Sequence[int],
) -> MaskedFrames:
    """Collect the masked frames of each utterance of a batch.

    Arguments
    ---------
    masked : sequence of B sequences of int
        Masked frames of each utterance, ascending.
    num_frames : int
        Frames T of the padded batch.
    seeds : sequence of B int
        Seeds of each utterance's negatives and Gumbel noise.

    Example
    -------
    >>> gather_masked_frames([[1, 2], [0]], 4, [7, 8]).frames
    tensor([1, 2, 4])
    """
    counts = [len(frames) for frames in masked]
    widest = max(counts)
    flat = [torch.as_tensor(f) + b * num_frames for b, f in enumerate(masked)]
    padded = [torch.arange(n) + b * widest for b, n in enumerate(counts)]
    frames = torch.cat(flat)
    span_mask = torch.zeros(len(masked) * num_frames, dtype=torch.bool)
    span_mask[frames] = True
    return MaskedFrames(
        span_mask.view(len(masked), num_frames),
        frames,
        torch.cat(padded),
        # One masked frame has no negatives: that utterance is left out.
        torch.tensor([n if n > 1 else 0 for n in counts]),
        torch.tensor(seeds),
        widest,
    )


class PretrainingOutput(NamedTuple):
    """Sums over the masked frames of a batch, on this process.

    Each scalar divided by `frames` is a mean, which is logged under the
    scalar's name. The sums of two batches add up to those of their union.
    """

    loss: Tensor  # (), what is trained; the only field with a gradient
    contrastive_loss: Tensor  # (), its part without the diversity loss
    accuracy: Tensor  # (), frames whose positive beats every negative
    chance: Tensor  # (), expected `accuracy` of a blind guess
    negatives_excluded: Tensor  # (), share of negatives equal to the positive
    frames: Tensor  # (), int64, masked frames with at least one negative
    probability_sums: Tensor  # (G, V), codebook probabilities
    code_counts: Tensor  # (G, V), how often each code was chosen
    latent_sums: Tensor  # (C,), float64, of the latents of masked frames
    latent_squares: Tensor  # (C,), float64, of their squares


class Wav2Vec2Pretraining(nn.Module):
    """Encoder, quantiser and losses.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        The encoder to train.
    num_groups, num_codes, target_dim
        Those of the `GumbelQuantiser`; context and targets are compared in
        `target_dim` dimensions.
    num_negatives : int
        Negatives for each masked frame, from the same utterance.
    logit_temperature : float
        Divisor of the cosine similarity.
    diversity_weight : float
        Factor on the diversity loss.
    front_end_gradient : float
        Factor on the gradient that enters the front end.

    Example
    -------
    >>> model = Wav2Vec2Pretraining(
    ...     Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32), target_dim=8
    ... )
    >>> masked = gather_masked_frames([range(5, 25)], 51, seeds=[1])
    >>> out = model(
    ...     torch.rand(1, 16_000), torch.ones(1), masked, temperature=2.0
    ... )
    >>> out.frames
    tensor(20)
    """

    def __init__(
        self,
        encoder: Wav2Vec2Encoder,
        *,
        num_groups: int = 2,
        num_codes: int = 320,
        target_dim: int = 256,
        num_negatives: int = 100,
        logit_temperature: float = 0.1,
        diversity_weight: float = 0.1,
        front_end_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        channels = encoder.config["front_end_channels"]
        self.quantiser = GumbelQuantiser(
            channels, num_groups, num_codes, target_dim
        )
        self.project = nn.Linear(encoder.d_model, target_dim)
        self.num_negatives = num_negatives
        self.logit_temperature = logit_temperature
        self.diversity_weight = diversity_weight
        self.front_end_gradient = front_end_gradient
        # Whether the last forward pass broke off after its collective had
        # begun: the one that takes its place must not begin another.
        self.broke_off = False
        # Whether to train on the code usage of all processes together.
        self.exchange = True

    def forward(
        self,
        wavs: Tensor,
        wav_lens: Tensor,
        masked: MaskedFrames,
        *,
        temperature: float,
        layer_drop_seed: int | None = None,
    ) -> PretrainingOutput:
        """Compute the losses of a batch.

        Arguments
        ---------
        wavs, wav_lens
            As in `Wav2Vec2Encoder.forward`.
        masked : MaskedFrames
            What `gather_masked_frames` returned for this batch.
        temperature : float
            Temperature of the Gumbel softmax.
        layer_drop_seed : int, optional
            Decides which layers are dropped.
        """
        latents, padding_mask = self.encoder.extract(wavs, wav_lens)
        latents = scale_gradient(latents, self.front_end_gradient)
        negatives, noise = self._draw(masked)
        masked_latents = latents.flatten(0, 1).index_select(0, masked.frames)
        quantised = self.quantiser(
            masked_latents, gumbel=noise, temperature=temperature
        )
        # Started here, so that it is done behind the Conformer.
        code_usage = _sum_over_processes(
            quantised.probability_sums,
            masked.counts.sum(),
            exchange=self.training and self.exchange and not self.broke_off,
        )
        self.broke_off = self.training
        encoded = self.encoder.contextualise(
            latents,
            padding_mask,
            span_mask=masked.span_mask,
            layer_drop_seed=layer_drop_seed,
        )
        context = encoded.output.flatten(0, 1).index_select(0, masked.frames)
        output = self._losses(
            self.project(context),
            masked_latents,
            masked,
            quantised=quantised,
            negatives=negatives,
            code_usage=code_usage,
        )
        self.broke_off = False
        return output

    def _losses(
        self,
        context: Tensor,
        latents: Tensor,
        masked: MaskedFrames,
        *,
        quantised: Quantised,
        negatives: Tensor,
        code_usage: Callable[[], tuple[Tensor, Tensor]],
    ) -> PretrainingOutput:
        """Compute the losses from the masked frames, (N, ...)."""
        contrast = contrastive_loss(
            pad_by_utterance(context, masked),
            pad_by_utterance(quantised.targets, masked),
            pad_by_utterance(quantised.code_ids, masked),
            negatives,
            padding_mask=padding_mask_from_lengths(
                masked.counts, masked.widest
            ),
            temperature=self.logit_temperature,
        )
        frames = masked.counts.sum()
        # In float64 the difference of its sums, a variance, survives rounding.
        exact_latents = latents.detach().double()
        sums, weight = code_usage()
        # The gradient belongs to the frames of all processes, the value to
        # ours: values add up over processes, as gradients do.
        diversity = diversity_loss(sums)
        diversity = diversity * weight - diversity.detach() * (weight - frames)
        return PretrainingOutput(
            loss=contrast.loss + self.diversity_weight * diversity,
            contrastive_loss=contrast.loss.detach(),
            accuracy=contrast.correct,
            chance=contrast.chance,
            negatives_excluded=contrast.excluded / self.num_negatives,
            frames=frames,
            probability_sums=quantised.probability_sums.detach(),
            code_counts=quantised.code_counts,
            latent_sums=exact_latents.sum(dim=0),
            latent_squares=exact_latents.square().sum(dim=0),
        )

    def _draw(self, masked: MaskedFrames) -> tuple[Tensor, Tensor | None]:
        """Draw negatives (B, M, K) and, in training, noise (N, G, V)."""
        # Two numbers for each frame: what is drawn depends on the utterance's
        # seed and on the frame's place in it alone.
        keys = splitmix64(masked.seeds, 2 * masked.widest)
        of_negatives, of_noise = keys.unflatten(1, (-1, 2)).unbind(-1)
        negatives = draw_negatives(
            of_negatives, masked.counts, self.num_negatives
        )
        if not self.training:
            return negatives, None
        of_noise = of_noise.flatten().index_select(0, masked.padded_index)
        quantiser = self.quantiser
        return negatives, gumbel_noise(
            of_noise, quantiser.num_groups, quantiser.num_codes
        )


def pad_by_utterance(x: Tensor, masked: MaskedFrames) -> Tensor:
    """Pad the masked frames of a batch by utterance: (N, ...) to (B, M, ...).

    The result is zero where an utterance has fewer than M masked frames.
    """
    shape = len(masked.counts), masked.widest
    padded = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
    padded = padded.index_copy(0, masked.padded_index, x)
    return padded.view(*shape, *x.shape[1:])


def _sum_over_processes(
    sums: Tensor, frames: Tensor, *, exchange: bool
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Start to sum both over all processes; the result waits for them.

    The gradient flows to our own share: the gradients of all processes then
    add up to that of one process with the joint batch. Without `exchange`,
    both are those of this process.
    """
    if not (exchange and dist.is_available() and dist.is_initialized()):
        return lambda: (sums, frames)
    packed = torch.cat([sums.detach().flatten(), frames.to(sums)[None]])
    work = dist.all_reduce(packed, async_op=True)

    def wait() -> tuple[Tensor, Tensor]:
        work.wait()
        total = packed[:-1].view_as(sums)
        return total + (sums - sums.detach()), packed[-1]

    return wait
