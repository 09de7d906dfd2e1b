"""How much the frames of an encoder differ from each other, layer by layer.

A layer whose frames lie in few dimensions tells little to a probe, whatever
the loss says. Letters: B utterances, T frames, D width, L layers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.training.pretraining_data import PretrainingBatch

# A covariance of D dimensions from so many times D frames: from fewer, the
# rank of the sample would be seen, not that of the layer.
FRAMES_PER_DIMENSION = 8


class LayerStatistics:
    """Variance and effective rank of latents and of each layer's output.

    Over whole utterances without masks, as a probe sees them; deviations are
    those from the mean of a batch.

    Arguments
    ---------
    encoder : Wav2Vec2Encoder
        In eval mode.
    """

    def __init__(self, encoder: Wav2Vec2Encoder) -> None:
        self.encoder = encoder
        self.frames = 0
        self._scatters: list[Tensor] = []  # latents (C, C), L+1 times (D, D)

    @property
    def is_complete(self) -> bool:
        """Whether this process has seen enough frames."""
        return self.frames >= FRAMES_PER_DIMENSION * self.encoder.d_model

    @torch.no_grad()
    def add(self, batch: PretrainingBatch) -> None:
        """Encode a batch, which is on the encoder's device, once more."""
        if not batch.frames:
            return  # silence in place of audio that could not be read
        latents, padding_mask = self.encoder.extract(batch.wavs, batch.wav_lens)
        states = self.encoder.contextualise(
            latents, padding_mask, all_hidden_states=True
        ).hidden_states
        is_valid = ~padding_mask
        scatters = [scatter(x[is_valid]) for x in (latents, *states)]
        if self._scatters:
            torch._foreach_add_(self._scatters, scatters)
        else:
            self._scatters = scatters
        self.frames += batch.frames

    def metrics(self) -> dict[str, float]:
        """Sum over all processes and return numbers; all must call it."""
        frames, scatters = self._sums()
        if not frames:
            return {}
        names = ["latents", *(f"layer_{n:02}" for n in range(len(scatters)))]
        found = {}
        for name, total in zip(names, scatters, strict=False):
            if name != "latents":  # their variance is logged at any time
                variance = total.diagonal().mean() / frames
                found[f"{name}_variance"] = variance.item()
            found[f"{name}_rank"] = effective_rank(total)
        return found

    def _sums(self) -> tuple[float, list[Tensor]]:
        """Return frames and scatters of all processes.

        A process may have had no batch, which has nothing to add.
        """
        channels = self.encoder.config["front_end_channels"]
        states = self.encoder.num_layers + 1
        widths = [channels, *[self.encoder.d_model] * states]
        zeros = self.encoder.mask_embedding.new_zeros
        own = self._scatters or [zeros(width, width) for width in widths]
        packed = torch.cat(
            [*(x.flatten() for x in own), own[0].new_tensor([self.frames])]
        )
        if dist.is_initialized():
            dist.all_reduce(packed)
        *parts, frames = packed.split([*(w * w for w in widths), 1])
        scatters = [p.view(w, w) for p, w in zip(parts, widths, strict=True)]
        return frames.item(), scatters


def scatter(frames: Tensor) -> Tensor:
    """Return the sum of outer products of deviations: (N, D) to (D, D)."""
    with torch.autocast(frames.device.type, enabled=False):
        deviations = frames.float() - frames.float().mean(dim=0)
        return deviations.T @ deviations


def effective_rank(scatter: Tensor) -> float:
    """Return exp of the entropy of the normalised eigenvalues.

    From 1, all deviations along one line, to D, equal in all directions.
    After Roy and Vetterli, "The effective rank" (EUSIPCO 2007); Garrido et
    al., "RankMe" (ICML 2023), found that it foretells how encoders do in
    probes. Both take singular values, whose squares are taken here: what
    counts is the share of the variance.

    Arguments
    ---------
    scatter : Tensor, (D, D)
        A covariance, times any factor; 0 has rank 0, NaN has NaN.

    Example
    -------
    >>> round(effective_rank(torch.diag(torch.tensor([3.0, 3.0, 0.0]))), 3)
    2.0
    """
    if not scatter.isfinite().all():
        return float("nan")
    values = torch.linalg.eigvalsh(scatter.double()).clamp(min=0)
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
