"""Encoders of HuggingFace behind the interface of `Wav2Vec2Encoder`.

They make wav2vec 2.0, HuBERT, WavLM and data2vec comparable with ours. They
need `transformers` (pip install "summarymixing[huggingface]"). Letters:
B utterances, S samples at 16 kHz, L layers.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from summarymixing.errors import UserError
from summarymixing.hub import has_file, is_hub_name
from summarymixing.lobes.long_audio import LongAudioEncoder
from summarymixing.lobes.wav2vec2 import Wav2Vec2Output
from summarymixing.nnet.masking import (
    absolute_lengths,
    masked_mean,
    padding_mask_from_lengths,
    zero_padding,
)
from summarymixing.pretrained import CONFIG_NAME

MIN_SAMPLES = 400  # of one frame
VARIANCE_EPSILON = 1e-7  # as in HuggingFace's feature extractor


class HuggingFaceEncoder(LongAudioEncoder):
    """SpeechBrain's wrapper of a HuggingFace model, with correct padding.

    SpeechBrain normalises a whole batch at once, padding included; here each
    utterance is normalised by its own samples, as in pre-training. Models
    that were trained without a padding mask (`wav2vec2-base` and others with
    group normalisation) get zeros as padding and no mask; their results
    depend a little on the batch.

    Arguments
    ---------
    source : str
        Name on the hub, or a folder with config.json, weights and
        preprocessor_config.json. UserError if it cannot be loaded.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        try:
            from huggingface_hub.constants import HF_HUB_CACHE
            from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
        except ImportError as error:
            raise UserError(
                f"{source} is not an encoder folder of this project, and the "
                "package transformers, which loads it from HuggingFace, is "
                'missing: pip install "summarymixing[huggingface]"'
            ) from error
        try:
            # SpeechBrain would make a cache of its own in the working folder.
            wrapper = Wav2Vec2(source, save_path=HF_HUB_CACHE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{source} holds no encoder of this project (encoder.json), "
                f"and HuggingFace cannot load it either: {error}"
            ) from error
        self.model = wrapper.model
        # In train mode a dropped layer would leave no hidden state.
        self.model.config.layerdrop = 0.0
        self.normalise = bool(wrapper.normalize_wav)
        self.uses_mask = bool(wrapper.feature_extractor.return_attention_mask)
        self.d_model = int(self.model.config.hidden_size)
        self.num_layers = int(self.model.config.num_hidden_layers)

    def draw_weights(self) -> None:
        """Replace the weights by random ones."""
        self.model = type(self.model)(self.model.config)

    def forward(self, wavs: Tensor, wav_lens: Tensor) -> Wav2Vec2Output:
        """Encode audio; arguments and result as in `Wav2Vec2Encoder.forward`.

        The last state is normalised only where the model does so.
        """
        num_samples = absolute_lengths(wav_lens, wavs.shape[1])
        # The convolutions fail on less.
        wavs = F.pad(wavs, (0, max(MIN_SAMPLES - wavs.shape[1], 0)))
        beyond_end = padding_mask_from_lengths(num_samples, wavs.shape[1])
        wavs = zero_padding(wavs, beyond_end)
        if self.normalise:
            wavs = normalise_utterances(wavs, beyond_end)
        out = self.model(
            wavs,
            attention_mask=(~beyond_end).long() if self.uses_mask else None,
            output_hidden_states=True,
        )
        # Large models normalise after their last layer, but not in the list
        # of hidden states.
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        num_frames = self.model._get_feat_extract_output_lengths(num_samples)
        padding_mask = padding_mask_from_lengths(
            num_frames.clamp(min=1), states[0].shape[1]
        )
        return Wav2Vec2Output(states, padding_mask)

    def count_frames(self, num_samples: int) -> int:
        """Return how many frames so many samples at 16 kHz become."""
        frames = self.model._get_feat_extract_output_lengths(num_samples)
        return max(int(frames), 1)


def normalise_utterances(wavs: Tensor, beyond_end: Tensor) -> Tensor:
    """Give each utterance mean 0, variance 1 and zero padding: (B, S).

    Arguments
    ---------
    wavs : Tensor, (B, S)
        Samples, zero on padding.
    beyond_end : Tensor, bool, (B, S)
        True on padding.
    """
    wavs = wavs - masked_mean(wavs.unsqueeze(-1), beyond_end)
    variance = masked_mean(wavs.square().unsqueeze(-1), beyond_end)
    wavs = wavs * (variance + VARIANCE_EPSILON).rsqrt()
    return zero_padding(wavs, beyond_end)


def is_huggingface(source: str) -> bool:
    """Return whether `source` holds a model of HuggingFace, none of ours.

    It may be a folder or a name on the hub; UserError if the hub has no such
    name.
    """
    folder = Path(source)
    if folder.exists():
        is_ours = (folder / CONFIG_NAME).is_file()
        return not is_ours and (folder / "config.json").is_file()
    return is_hub_name(source) and not has_file(source, CONFIG_NAME)
