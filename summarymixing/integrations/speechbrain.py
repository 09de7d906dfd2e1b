"""An encoder in place of SpeechBrain's HuggingFace `Wav2Vec2`.

A recipe with wav2vec 2.0, HuBERT or WavLM changes one line of its YAML file:

    wav2vec2: !new:summarymixing.integrations.speechbrain.Wav2Vec2

Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width, L
layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.errors import UserError
from summarymixing.lobes.features import num_frames
from summarymixing.lobes.finetuning import draw_masks
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
from summarymixing.nnet.masking import (
    absolute_lengths,
    masked_mean,
    zero_padding,
)
from summarymixing.nnet.span_mask import overlapping_spans

NORM_EPSILON = 1e-5  # of torch.nn.functional.layer_norm
# Those of HuggingFace's Wav2Vec2Config, which SpeechBrain's lobe uses.
MASKED_SHARE, MASKED_FRAMES = 0.05, 10


class Wav2Vec2(nn.Module):
    """A `Wav2Vec2Encoder` with the arguments and outputs of SpeechBrain's lobe.

    It differs in three things. A frozen encoder stays in eval mode when the
    Brain calls `train()`. `output_norm` takes its statistics from valid
    frames alone. Where nothing masks, the mask embedding does not learn, so
    that DDP needs no `find_unused_parameters`.

    Arguments
    ---------
    source : str
        A folder, or a name on the HuggingFace hub, as of
        `Wav2Vec2Encoder.from_pretrained`, with the same errors.
    save_path : str
        Where downloads go; a folder stays where it is.
    output_norm : bool
        Normalise each utterance (for each layer), over frames and channels.
    freeze : bool
        No gradients, and eval mode for ever.
    freeze_feature_extractor : bool
        No gradients for the front end.
    apply_spec_augment : bool
        Replace spans of frames by the mask embedding in training: as many
        and as long as HuggingFace's models do by default, which is 5 % of
        the frames, in spans of 10. UserError together with `freeze`.
    output_all_hiddens : bool
        Return the input of the first layer and the output of every layer.
    **kwargs : Any
        More keywords of `Wav2Vec2Encoder.from_pretrained`, such as
        `revision`.

    Example
    -------
    >>> from summarymixing.pretrained import save_encoder
    >>> folder = save_encoder(
    ...     Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32),
    ...     getfixture("tmp_path"),
    ... )
    >>> lobe = Wav2Vec2(folder, save_path=None, output_all_hiddens=True)
    >>> lobe(torch.rand(1, 16_000)).shape
    torch.Size([3, 1, 51, 16])
    """

    def __init__(
        self,
        source: str,
        save_path: str | None,
        output_norm: bool = False,
        freeze: bool = False,
        freeze_feature_extractor: bool = False,
        apply_spec_augment: bool = False,
        output_all_hiddens: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if freeze and apply_spec_augment:
            raise UserError(
                "apply_spec_augment masks frames of an encoder that learns, "
                "and freeze forbids it to learn: set one of them to False"
            )
        self.model = Wav2Vec2Encoder.from_pretrained(
            source, cache_dir=save_path, **kwargs
        )
        self.output_norm, self.freeze = output_norm, freeze
        self.freeze_feature_extractor = freeze_feature_extractor
        self.apply_spec_augment = apply_spec_augment
        self.output_all_hiddens = output_all_hiddens
        self.model.requires_grad_(not freeze)
        if freeze_feature_extractor:
            self.model.front_end.requires_grad_(False)
        if not apply_spec_augment:
            self.model.mask_embedding.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Wav2Vec2:
        """Switch to training, except for a frozen encoder."""
        super().train(mode)
        self.model.train(mode and not self.freeze)
        return self

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Encode audio.

        Arguments
        ---------
        wav : Tensor, (B, S)
            16 kHz mono.
        wav_lens : Tensor, float, (B,), optional
            Relative lengths; all of `wav` is audio without them.

        Returns
        -------
        Tensor, (B, T, D), or (L+1, B, T, D) with `output_all_hiddens`
            Hidden states, zero on padding.
        """
        learns = torch.is_grad_enabled() and not self.freeze
        with torch.set_grad_enabled(learns):
            return self.extract_features(wav, wav_lens)

    def extract_features(
        self, wav: Tensor, wav_lens: Tensor | None = None
    ) -> Tensor:
        """Encode audio as `forward` does, with gradients in any case."""
        if wav_lens is None:
            wav_lens = torch.ones(len(wav), device=wav.device)
        latents, padding_mask = self.model.extract(wav, wav_lens)
        span_mask = None
        if self.apply_spec_augment and self.training:
            span_mask = _draw_spans(wav_lens, wav.shape[1]).to(wav.device)
            missing = latents.shape[1] - span_mask.shape[1]
            span_mask = F.pad(span_mask, (0, missing))  # nobody fills the batch
        encoded = self.model.contextualise(
            latents,
            padding_mask,
            span_mask=span_mask,
            all_hidden_states=self.output_all_hiddens,
        )
        states = encoded.hidden_states or [encoded.output]
        if self.output_norm:
            states = [_normalised(state, padding_mask) for state in states]
        states = [zero_padding(state, padding_mask) for state in states]
        return torch.stack(states) if self.output_all_hiddens else states[0]


def _draw_spans(wav_lens: Tensor, num_samples: int) -> Tensor:
    """Draw masked frames, (B, T), by torch's generator, which recipes seed."""
    lengths = num_frames(absolute_lengths(wav_lens.cpu(), num_samples))
    seeds = torch.randint(2**62, (len(lengths),))
    spans = partial(
        overlapping_spans, probability=MASKED_SHARE, length=MASKED_FRAMES
    )
    masks = draw_masks(lengths.tolist(), 0, seeds.tolist(), frames=spans)
    return masks.span_mask


def _normalised(x: Tensor, padding_mask: Tensor) -> Tensor:
    """Give each utterance of x (B, T, D) mean 0 and variance 1."""
    mean = masked_mean(x, padding_mask).mean(dim=1)
    centred = x - mean[:, None, None]
    variance = masked_mean(centred.square(), padding_mask).mean(dim=1)
    return centred * (variance + NORM_EPSILON).rsqrt()[:, None, None]
