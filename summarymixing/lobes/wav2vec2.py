"""The wav2vec 2.0 encoder: one path from audio to frames.

Pre-training, probes, fine-tuning and users all go through `Wav2Vec2Encoder`.
Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width, L
layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from summarymixing.lobes.conformer import ConformerEncoder, EncoderOutput
from summarymixing.lobes.features import (
    FRAMES_PER_SECOND,
    SAMPLE_RATE_HZ,
    FbankFrontEnd,
)
from summarymixing.lobes.long_audio import (
    LongAudioEncoder,
    StateBlock,
    Workspace,
    bytes_per_frame,
    exact_blocks,
    is_blockwise,
)
from summarymixing.nnet.masking import absolute_lengths
from summarymixing.nnet.mixer import MixerFactory, describe_mixer
from summarymixing.nnet.recompute import recomputed
from summarymixing.nnet.summary_mixing import SummaryMixing
from summarymixing.pretrained import load_encoder, rename_old_weights

# More at once would not be faster.
MAX_SECONDS_AT_ONCE = 240.0


class Wav2Vec2Output(NamedTuple):
    """What an encoder returns for a batch."""

    hidden_states: list[Tensor]  # L+1 times (B, T, D)
    padding_mask: Tensor  # (B, T), bool, True on padding


def sine_positions(
    num_frames: int,
    d_model: int,
    device: torch.device | str = "cpu",
    *,
    first: int = 0,
    rates: Tensor | None = None,
) -> Tensor:
    """Absolute sine positions of Vaswani et al. (2017): (num_frames, D).

    `first` is the number of the first frame; `rates` is what `sine_rates`
    returned, where it is not to be computed again.

    Example
    -------
    >>> sine_positions(3, 4)[0]
    tensor([0., 1., 0., 1.])
    """
    arange = partial(torch.arange, dtype=torch.float32, device=device)
    frame = arange(first, first + num_frames).unsqueeze(1)
    angle = frame * (sine_rates(d_model, device) if rates is None else rates)
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return table[:, :d_model]


def sine_rates(d_model: int, device: torch.device | str = "cpu") -> Tensor:
    """Angles by which `sine_positions` turn with each frame: (D / 2,)."""
    channel = torch.arange(0, d_model, 2, dtype=torch.float32, device=device)
    return torch.exp(channel * (-math.log(10_000.0) / d_model))


class Wav2Vec2Encoder(LongAudioEncoder):
    """FBank-CNN1D front end and Conformer: audio in, hidden states out.

    Arguments
    ---------
    mixer : callable
        A class that keeps the promises of `summarymixing.nnet.mixer.Mixer`,
        or a partial of one: `partial(SummaryMixing, num_heads=8)`. UserError
        for one that could not be loaded again, such as a lambda.
    num_layers, d_model, d_ffn, kernel_size, dropout, layer_drop
        Sizes and regularisation of the `ConformerEncoder`; `dropout` is that
        of its input, too.
    num_mels, front_end_channels : int
        Mel channels and width of the latents of the `FbankFrontEnd`.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=2, d_model=16, d_ffn=32).eval()
    >>> wavs, wav_lens = torch.rand(2, 16_000), torch.tensor([1.0, 0.5])
    >>> out = encoder(wavs, wav_lens)
    >>> len(out.hidden_states), out.hidden_states[-1].shape
    (3, torch.Size([2, 51, 16]))
    """

    sample_rate_hz = SAMPLE_RATE_HZ
    frames_per_second = FRAMES_PER_SECOND

    def __init__(
        self,
        *,
        mixer: MixerFactory = SummaryMixing,
        num_layers: int = 12,
        d_model: int = 768,
        d_ffn: int = 3072,
        kernel_size: int = 31,
        dropout: float = 0.1,
        layer_drop: float = 0.05,
        num_mels: int = 80,
        front_end_channels: int = 512,
    ) -> None:
        super().__init__()
        conformer: dict[str, Any] = {
            "num_layers": num_layers,
            "d_model": d_model,
            "d_ffn": d_ffn,
            "kernel_size": kernel_size,
            "dropout": dropout,
            "layer_drop": layer_drop,
        }
        self.config: dict[str, Any] = {
            "mixer": describe_mixer(mixer),
            **conformer,
            "num_mels": num_mels,
            "front_end_channels": front_end_channels,
        }
        self.mixer = mixer
        self.d_model, self.num_layers = d_model, num_layers
        self.front_end = FbankFrontEnd(num_mels, front_end_channels)
        self.project = nn.Linear(front_end_channels, d_model)
        self.dropout = nn.Dropout(dropout)
        # Replaces masked frames in pre-training; uniform, as in SpeechBrain.
        self.mask_embedding = nn.Parameter(torch.rand(d_model))
        self.conformer = ConformerEncoder(mixer=mixer, **conformer)
        self._positions = torch.empty(0, d_model)
        self.register_load_state_dict_pre_hook(rename_old_weights)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str = "cpu",
        *,
        mixer: MixerFactory | None = None,
        revision: str | None = None,
        digest: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Wav2Vec2Encoder:
        """Load an encoder, in eval mode, from a folder or the HuggingFace hub.

        Arguments
        ---------
        source : str or Path
            A folder that `summarymixing.pretrained.save_encoder` wrote, such
            as `OUTPUT_FOLDER/encoder` of a run; or, if there is no such
            folder, USER/NAME on the hub.
        device : torch.device or str
            Where the weights go.
        mixer : callable, optional
            The class of the mixers, if it is not one of this package:
            loading imports nothing that a folder names. It gets the keywords
            that were saved.
        revision : str, optional
            A branch, tag or commit on the hub; the newest without it.
        digest : str, optional
            What `cat encoder.json encoder.safetensors | sha256sum` must print.
        cache_dir : str or Path, optional
            Where downloads are kept, if not in the client's own cache.

        Raises
        ------
        UserError
            If the folder is missing, damaged or of another kind, if config
            and weights disagree, if `mixer` is not the class that was saved,
            if the digest is another, or if the hub gives nothing.
        """
        encoder = load_encoder(
            cls,
            source,
            mixer=mixer,
            revision=revision,
            digest=digest,
            cache_dir=cache_dir,
        )
        return encoder.to(device).eval()

    def untrained_twin(
        self, *, mixer_dropout: float | None = None, **changes: float | None
    ) -> Wav2Vec2Encoder:
        """Return an encoder of the same architecture with random weights.

        Arguments
        ---------
        mixer_dropout : float, optional
            Dropout of the mixers; None keeps theirs. TypeError if they have
            no such keyword.
        changes : float, optional
            Other values for keywords of the constructor; None keeps the old.
        """
        mixer: Any = self.mixer
        if mixer_dropout is not None:
            mixer = partial(mixer, dropout=mixer_dropout)
        changed = {k: v for k, v in changes.items() if v is not None}
        return Wav2Vec2Encoder(**{**self.config, **changed, "mixer": mixer})

    def forward(self, wavs: Tensor, wav_lens: Tensor) -> Wav2Vec2Output:
        """Encode audio.

        Arguments
        ---------
        wavs : Tensor, (B, S)
            16 kHz mono. What lies beyond the end of an utterance is ignored.
        wav_lens : Tensor, float, (B,)
            Relative lengths, as in SpeechBrain.

        Returns
        -------
        Wav2Vec2Output
            L+1 hidden states: the input of the first layer, then the output
            of each layer, the last one normalised.
        """
        latents, padding_mask = self.extract(wavs, wav_lens)
        encoded = self.contextualise(
            latents, padding_mask, all_hidden_states=True
        )
        return Wav2Vec2Output(encoded.hidden_states, padding_mask)

    @property
    def is_exact(self) -> bool:
        """Whether `encode_long` returns what one forward pass would."""
        return is_blockwise(self.conformer)

    def seconds_at_once(self, memory: float) -> float:
        """Return how long a batch, or a recording, may be for one forward."""
        if not self.is_exact:
            return super().seconds_at_once(memory)
        states = 4 * (self.num_layers + 1) * self.d_model
        per_frame = states + bytes_per_frame(self.conformer)
        seconds = memory / per_frame / FRAMES_PER_SECOND
        return min(max(seconds, 1.0), MAX_SECONDS_AT_ONCE)

    def state_blocks(
        self,
        wavs: Iterable[Tensor],
        workspace: Workspace,
        num_layers: int | None = None,
    ) -> Iterator[StateBlock]:
        """Encode a recording in blocks, see `LongAudioEncoder`."""
        if not self.is_exact:
            return super().state_blocks(wavs, workspace)
        per_frame = bytes_per_frame(self.conformer)
        return exact_blocks(
            wavs,
            self.front_end,
            self._embed,
            self.conformer,
            workspace=workspace,
            num_layers=self.num_layers if num_layers is None else num_layers,
            block_frames=workspace.block_frames(per_frame),
        )

    def _embed(self, latents: Tensor, start: int) -> Tensor:
        """Make the input of the first layer, of the frames from `start` on."""
        x = self.project(latents)
        table = sine_positions(x.shape[1], self.d_model, x.device, first=start)
        return x + table.to(self.mask_embedding.dtype)

    def extract(self, wavs: Tensor, wav_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the front end; the arguments are those of `forward`.

        Returns latents, (B, T, front_end_channels), and a padding mask, bool,
        (B, T), True on padding.
        """
        num_samples = absolute_lengths(wav_lens, wavs.shape[1])
        # What it keeps would wait until the Conformer's backward pass is over.
        return recomputed(
            self.front_end,
            wavs,
            num_samples,
            shortest_sum=int(any(self.conformer.shortest_sums)),
        )

    def contextualise(
        self,
        latents: Tensor,
        padding_mask: Tensor,
        *,
        span_mask: Tensor | None = None,
        all_hidden_states: bool = False,
        layer_drop_seed: int | None = None,
    ) -> EncoderOutput:
        """Run the Conformer over latents.

        Arguments
        ---------
        latents : Tensor, (B, T, front_end_channels)
            What `extract` returned.
        padding_mask : Tensor, bool, (B, T)
            True on padding.
        span_mask : Tensor, bool, (B, T), optional
            True on frames that the mask embedding replaces.
        all_hidden_states, layer_drop_seed
            See `ConformerEncoder.forward`.
        """
        x = self.dropout(self.project(latents))
        if span_mask is not None:
            x = torch.where(
                span_mask.unsqueeze(-1), self.mask_embedding.to(x.dtype), x
            )
        x = x + self._position_table(x.shape[1], x.device)
        return self.conformer(
            x,
            padding_mask,
            all_hidden_states=all_hidden_states,
            layer_drop_seed=layer_drop_seed,
        )

    def _position_table(self, num_frames: int, device: torch.device) -> Tensor:
        """Return positions (num_frames, D) of a table that grows as needed."""
        # Not a buffer: DDP would broadcast it although its length differs
        # between processes, and `to` would round it to the weights' type.
        table = self._positions
        if len(table) < num_frames or table.device != device:
            # A little longer, so that few new lengths rebuild it.
            table = sine_positions(num_frames * 5 // 4, self.d_model, device)
            self._positions = table
        # The weights' type, not that of x: under autocast, bfloat16 has 8 bits
        # for a position, and the first layer would be compiled for itself.
        return table[:num_frames].to(self.mask_embedding.dtype)
