"""The encoders of probes: loaded, frozen, random, or a plain filterbank.

Letters: B utterances, S samples at 16 kHz, T frames (20 ms), D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from summarymixing.errors import UserError
from summarymixing.lobes.features import MelFilterbank, num_frames
from summarymixing.lobes.huggingface import HuggingFaceEncoder, is_huggingface
from summarymixing.lobes.long_audio import LongAudioEncoder
from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder, Wav2Vec2Output
from summarymixing.nnet.masking import (
    absolute_lengths,
    masked_mean,
    padding_mask_from_lengths,
    zero_padding,
)
from summarymixing.nnet.mixer import MixerFactory
from summarymixing.nnet.randomness import derive_seed

# All have d_model, num_layers and (wavs, wav_lens) -> Wav2Vec2Output.
Encoder: TypeAlias = "Wav2Vec2Encoder | HuggingFaceEncoder | LogMelEncoder"

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

LOG_MEL = "log_mel"  # what users type
SIGNAL_SAMPLES = 32_000  # of what `FrozenEncoder.identity` encodes
UNIT_DB = 20.0  # brings log-Mel features near to a deviation of 1


class LogMelEncoder(MelFilterbank, LongAudioEncoder):
    """Pairs of filterbank frames in place of an encoder.

    It shows what a probe reaches without pre-training, from one hidden state.
    The loudness of each utterance is removed, but not the mean of each
    channel: heads that average over time would see nothing.

    Arguments
    ---------
    num_mels : int
        Number of mel channels, half of the width D.

    Example
    -------
    >>> out = LogMelEncoder()(torch.rand(1, 16_000), torch.ones(1))
    >>> len(out.hidden_states), out.hidden_states[0].shape
    (1, torch.Size([1, 51, 160]))
    """

    num_layers = 0

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__(num_mels)
        self.d_model = 2 * num_mels

    def forward(self, wavs: Tensor, wav_lens: Tensor) -> Wav2Vec2Output:
        """Encode wavs (B, S) of relative lengths wav_lens (B,)."""
        num_samples = absolute_lengths(wav_lens, wavs.shape[1])
        mels, padding_mask = self.decibels(wavs, num_samples)
        loudness = masked_mean(mels, padding_mask).mean(dim=1)
        mels = (mels - loudness[:, None, None]) / UNIT_DB
        mels = zero_padding(mels, padding_mask)
        mels = F.pad(mels, (0, 0, 0, mels.shape[1] % 2))
        frames = mels.unflatten(1, (-1, 2)).flatten(2)
        padding_mask = padding_mask_from_lengths(
            num_frames(num_samples), frames.shape[1]
        )
        return Wav2Vec2Output([frames], padding_mask)


class StackedOutput(NamedTuple):
    """A `Wav2Vec2Output` whose states are one tensor, 0 on padding."""

    hidden_states: Tensor  # (L+1, B, T, D)
    padding_mask: Tensor  # (B, T), bool, True on padding

    @classmethod
    def pad(cls, utterances: Sequence[Tensor]) -> StackedOutput:
        """Put B utterances, each (L + 1, T_b, D), into one batch.

        Example
        -------
        >>> batch = StackedOutput.pad(
        ...     [torch.ones(3, 5, 8), torch.ones(3, 4, 8)]
        ... )
        >>> batch.hidden_states.shape, batch.padding_mask.sum(dim=1)
        (torch.Size([3, 2, 5, 8]), tensor([0, 1]))
        """
        num_states, _, d_model = utterances[0].shape
        lengths = [utterance.shape[1] for utterance in utterances]
        batch = utterances[0].new_zeros(
            num_states, len(lengths), max(lengths), d_model
        )
        for number, length in enumerate(lengths):
            batch[:, number, :length] = utterances[number]
        num_frames = torch.tensor(lengths, device=batch.device)
        return cls(batch, padding_mask_from_lengths(num_frames, max(lengths)))

    def to(self, device: torch.device | str) -> StackedOutput:
        """Copy to a device, without waiting where the memory is pinned."""
        return StackedOutput(*(x.to(device, non_blocking=True) for x in self))

    def pin_memory(self) -> StackedOutput:
        """Pin what is copied, for the data loader."""
        return StackedOutput(*(x.pin_memory() for x in self))


class FrozenEncoder(nn.Module):
    """An encoder without gradients that stays in eval mode.

    A Brain calls `train()` on all of its modules; MP3S thereby switched
    dropout on in encoders that it meant to freeze.

    Arguments
    ---------
    encoder : Encoder
        The encoder; its gradients are switched off.
    precision : str
        Precision of the computation, a key of `PRECISIONS`.
    train_mode : bool
        Whether the encoder follows `train()`, to reproduce MP3S: dropout and
        layer drop are then on while the head learns.
    alone : bool
        Whether each utterance is encoded by itself. Sums of a batch are
        rounded by its shape, so this alone makes states that do not depend,
        in their last bits, on who is with whom. In train mode, where they
        differ anyway, batches are encoded whole.

    Example
    -------
    >>> encoder = Wav2Vec2Encoder(num_layers=1, d_model=16, d_ffn=32)
    >>> FrozenEncoder(encoder).train().inner.training
    False
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        precision: str = "fp32",
        train_mode: bool = False,
        alone: bool = False,
    ) -> None:
        super().__init__()
        self.inner = encoder.requires_grad_(False)
        self.dtype = PRECISIONS[precision]
        self.train_mode, self.alone = train_mode, alone
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Keep the encoder in eval mode, unless `train_mode`."""
        super().train(mode)
        self.inner.train(mode and self.train_mode)
        return self

    def autocast(self, device_type: str) -> torch.autocast:
        """Return the context that computes in `precision`."""
        reduced = self.dtype != torch.float32
        return torch.autocast(device_type, self.dtype, enabled=reduced)

    @torch.no_grad()
    def forward(
        self, wavs: Tensor, wav_lens: Tensor
    ) -> Wav2Vec2Output | StackedOutput:
        """Encode wavs (B, S), wav_lens (B,) to states that are 0 on padding."""
        if not self.alone or self.inner.training:
            return self._encode_batch(wavs, wav_lens)
        lengths = absolute_lengths(wav_lens, wavs.shape[1]).tolist()
        # Copies, so that each begins in memory as an utterance alone does.
        utterances = [
            self.encode(wav[:length].clone())
            for wav, length in zip(wavs, lengths, strict=True)
        ]
        return StackedOutput.pad(utterances)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """Encode one utterance, (S,), to float32 states, (L + 1, T, D)."""
        out = self._encode_batch(wav[None], wav.new_ones(1))
        return torch.cat([state.float() for state in out.hidden_states])

    def _encode_batch(self, wavs: Tensor, wav_lens: Tensor) -> Wav2Vec2Output:
        with self.autocast(wavs.device.type):
            out = self.inner(wavs, wav_lens)
        for state in out.hidden_states:
            state.masked_fill_(out.padding_mask.unsqueeze(-1), 0)
        return out

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(chain(self.parameters(), self.buffers())).device

    def identity(self) -> dict[str, Any]:
        """Return what its states depend on beside the audio, as JSON.

        The states of a fixed signal are part of it. They tell what weights do
        not: heads, front end, precision, mixers of other packages, and the
        arithmetic of the device.
        """
        time = torch.arange(SIGNAL_SAMPLES) / SIGNAL_SAMPLES
        signal = time * torch.sin(600 * time) + 0.5 * torch.sin(2e4 * time**2)
        states = self.encode(signal.to(self.device)).cpu()
        summary = hashlib.blake2b(states.numpy().tobytes(), digest_size=16)
        return {
            "class": type(self.inner).__name__,
            "weights": digest(self),
            "signal": summary.hexdigest(),
            "device": self.device.type,
            "torch": torch.__version__,
        }


def load_frozen_encoder(hparams: Mapping[str, Any]) -> FrozenEncoder:
    """Load the encoder of a probe, or draw one of the same architecture.

    Arguments
    ---------
    hparams : mapping
        `encoder`, `mixer`, `random_encoder`, `seed`, `precision`,
        `encoder_train_mode` and `encode_alone` of hparams/shared/probe.yaml.
        The encoder is a folder or a name on the HuggingFace hub, of this
        project or of HuggingFace, or log_mel.

    Raises
    ------
    UserError
        If the folder holds no encoder.
    """
    encoder = open_encoder(str(hparams["encoder"]), mixer=hparams["mixer"])
    if hparams["random_encoder"]:
        encoder = random_twin(encoder, hparams["seed"])
    return FrozenEncoder(
        encoder,
        precision=hparams["precision"],
        train_mode=hparams["encoder_train_mode"],
        alone=hparams.get("encode_alone", False),
    )


def open_encoder(source: str, *, mixer: MixerFactory | None = None) -> Encoder:
    """Load an encoder of any kind, in eval mode.

    Arguments
    ---------
    source : str
        A folder or a name on the HuggingFace hub, of this project or of
        HuggingFace, or log_mel. UserError if it holds no encoder.
    mixer : callable, optional
        As in `Wav2Vec2Encoder.from_pretrained`.
    """
    encoder: Encoder
    if source == LOG_MEL:
        encoder = LogMelEncoder()
    elif is_huggingface(source):
        encoder = HuggingFaceEncoder(source)
    else:
        encoder = Wav2Vec2Encoder.from_pretrained(source, mixer=mixer)
    return encoder.eval()


def random_twin(encoder: Encoder, seed: int) -> Encoder:
    """Return an encoder of the same architecture with random weights."""
    torch.manual_seed(derive_seed(seed, "encoder"))
    if isinstance(encoder, HuggingFaceEncoder):
        encoder.draw_weights()
        return encoder
    if isinstance(encoder, LogMelEncoder):
        raise UserError(
            f"{LOG_MEL} has no weights to draw; omit --random_encoder"
        )
    return encoder.untrained_twin()


def digest(module: nn.Module) -> str:
    """Return a fingerprint of the weights of a module."""
    summary = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        # The names of 0.1.0, so that probes that it began can be resumed.
        name = name.replace("inner.", "encoder.", 1)
        name = name.replace("encoder.conformer.", "encoder.encoder.", 1)
        summary.update(name.encode())
        summary.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return summary.hexdigest()
