"""A fine-tuned recogniser on disk, and words with their times.

The output folder of a fine-tuning holds `encoder/`, `head.safetensors` and
`recogniser.json`, which describes the head and the tokenizer. Loading executes
nothing from the folder. Letters: T frames (20 ms), D width, C tokens.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from summarymixing.errors import UserError
from summarymixing.files import write_json
from summarymixing.lobes import heads
from summarymixing.lobes.encoders import open_encoder
from summarymixing.lobes.features import FRAMES_PER_SECOND
from summarymixing.nnet.mixer import MixerFactory
from summarymixing.pretrained import CONFIG_NAME, save_weights
from summarymixing.training.ctc import BeamSearch
from summarymixing.training.tokenizers import (
    UNKNOWN,
    BpeTokenizer,
    CharacterTokenizer,
    Tokenizer,
)

FORMAT = "summarymixing.recogniser"
DESCRIPTION_NAME = "recogniser.json"
HEAD_NAME = "head.safetensors"
# Heads that see each frame alone, so that an hour can be read in blocks.
FRAMEWISE = (heads.HiddenLayerHead,)
HEADS = {
    head.__name__: head
    for head in (*FRAMEWISE, heads.LSTMHead, heads.ContextNetHead)
}
ACTIVATION = "activation"  # the keyword that is a class of torch.nn
SPACE = "\u2581"  # at the start of a word, in the units of SentencePiece
# The beam search takes stretches of this length at most.
MAX_SEARCH_FRAMES = 60 * FRAMES_PER_SECOND


class Word(NamedTuple):
    """A word, and where it is said."""

    text: str
    start_s: float
    stop_s: float


def save_recogniser(
    folder: Path, head: nn.Module, make_head: Any, tokenizer: Tokenizer
) -> str:
    """Write head and tokenizer beside the encoder of a fine-tuning.

    Arguments
    ---------
    folder : Path
        The output folder of the run.
    head : nn.Module
        The head that was tested.
    make_head : callable
        What made it: a class, or a `functools.partial` of one.
    tokenizer : Tokenizer
        Its outputs.

    Returns
    -------
    str
        Why `load_recogniser` will not read this, or nothing.
    """
    save_weights(head, folder / HEAD_NAME)
    (folder / DESCRIPTION_NAME).unlink(missing_ok=True)
    found = getattr(make_head, "func", make_head)
    keywords = dict(getattr(make_head, "keywords", {}))
    if found not in HEADS.values():
        return f"the head {found} is none of {', '.join(HEADS)}"
    activation = keywords.get(ACTIVATION)
    if activation is not None:
        name = getattr(activation, "__name__", "")
        if getattr(nn, name, None) is not activation:
            return f"the activation {activation} is no class of torch.nn"
        keywords[ACTIVATION] = name
    if not isinstance(tokenizer, CharacterTokenizer | BpeTokenizer):
        return f"the tokenizer {type(tokenizer).__name__} is of your own"
    write_json(
        folder / DESCRIPTION_NAME,
        {
            "format": FORMAT,
            "version": 1,
            "head": {"class": found.__name__, **keywords},
            "tokenizer": type(tokenizer).__name__,
            "tokens": tokenizer.tokens,
        },
    )
    return ""


def load_recogniser(
    folder: Path, mixer: MixerFactory | None = None
) -> tuple[Any, nn.Module, Tokenizer]:
    """Load encoder, head and tokenizer, in eval mode.

    Arguments
    ---------
    folder : Path
        The output folder of a fine-tuning. UserError for another one.
    mixer : callable, optional
        As in `Wav2Vec2Encoder.from_pretrained`.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise UserError(_explain_missing(folder))
    try:
        about = json.loads(path.read_text("utf-8"))
        if (about["format"], about["version"]) != (FORMAT, 1):
            raise ValueError(f"its format is {about['format']!r}")
        settings = dict(about["head"])
        build: Any = HEADS[settings.pop("class")]
        if ACTIVATION in settings:
            settings[ACTIVATION] = _activation(settings[ACTIVATION])
        tokenizer = _load_tokenizer(folder, about)
        encoder = open_encoder(str(folder / "encoder"), mixer=mixer)
        head = build(encoder.d_model, len(tokenizer.tokens), **settings)
        head.load_state_dict(load_file(folder / HEAD_NAME))
    except (
        OSError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{path} and {HEAD_NAME} beside it cannot be loaded ({error}). "
            "Copy the folder again, or start its fine-tuning again: it writes "
            "them at its end."
        ) from error
    return encoder.eval(), head.eval().requires_grad_(False), tokenizer


def _explain_missing(folder: Path) -> str:
    advice = (
        "Give the output folder of recipes/finetuning/ctc.py; it gets "
        f"{DESCRIPTION_NAME} after the tests at the end of the run"
    )
    if not folder.is_dir():
        return f"There is no folder {folder}. {advice}."
    if (folder / CONFIG_NAME).is_file():
        return f"{folder} is an encoder, without a head. {advice}."
    if (folder / "layer_weights.json").is_file():
        return (
            f"{folder} is a probe: its head was made to compare encoders, and "
            f"is not exported. {advice}."
        )
    return (
        f"{folder} holds no {DESCRIPTION_NAME}. {advice}. If it has ended "
        "with an earlier version, start it again with the same command: it "
        "only tests."
    )


def _activation(name: str) -> type[nn.Module]:
    found = getattr(nn, name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"torch.nn has no activation {name}")
    return found


def _load_tokenizer(folder: Path, about: dict[str, Any]) -> Tokenizer:
    tokenizer: Tokenizer
    if about["tokenizer"] == BpeTokenizer.__name__:
        tokenizer = BpeTokenizer.load(folder)
    else:
        tokenizer = CharacterTokenizer(about["tokens"][2:])
    if tokenizer.tokens != about["tokens"]:
        raise ValueError("its tokens are not those of the tokenizer")
    return tokenizer


@torch.no_grad()
def frame_scores(head: nn.Module, states: Iterable[Tensor]) -> Iterator[Tensor]:
    """Apply a head to the last states of a recording, block by block.

    Arguments
    ---------
    head : nn.Module
        In eval mode; one that looks beyond a frame gets all at once.
    states : iterable of Tensors, (n, D)
        The blocks, in their order.

    Yields
    ------
    Tensor, (n, C)
        Logits, on the CPU.
    """
    if not isinstance(head, FRAMEWISE):
        states = [torch.cat(list(states))]
    for block in states:
        x = block.float()[None]
        no_padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        yield head(x, no_padding)[0].float().cpu()


def greedy_words(ids: Sequence[int], tokenizer: Tokenizer) -> list[Word]:
    """Return the words of the likeliest token of each frame.

    Arguments
    ---------
    ids : sequence of T int
        Tokens, blanks and repetitions included.
    tokenizer : Tokenizer
        Made by this package.

    Returns
    -------
    list of Word
        A word begins with the first frame of its first token and ends with
        the last frame of its last one. CTC puts a token where it is sure of
        it, which may be later than its sound begins.

    Example
    -------
    >>> tokenizer = CharacterTokenizer(["AB C"])  # A: 2, B: 3, space: 4
    >>> greedy_words([0, 2, 2, 0, 3, 4, 5], tokenizer)
    [Word(text='AB', start_s=0.02, stop_s=0.1), \
Word(text='C', start_s=0.12, stop_s=0.14)]
    """
    found: list[tuple[str, int, int]] = []
    text, start, stop, frame = "", 0, 0, 0
    for token, repeated in groupby(ids):
        first, frame = frame, frame + len(list(repeated))
        if token == tokenizer.blank_id:
            continue
        is_unknown = token == tokenizer.unknown_id
        shown = UNKNOWN if is_unknown else tokenizer.tokens[token]
        for character in shown.replace(SPACE, " "):
            if not character.isspace():
                start = start if text else first
                text, stop = text + character, frame
            elif text:
                found.append((text, start, stop))
                text = ""
    if text:
        found.append((text, start, stop))
    return [_word(*word) for word in found]


def beam_words(
    scores: Tensor, tokenizer: Tokenizer, search: BeamSearch
) -> list[Word]:
    """Return the words that a beam search finds, stretch by stretch.

    Arguments
    ---------
    scores : Tensor, (T, C)
        Logits.
    tokenizer : Tokenizer
        What the tokens mean.
    search : BeamSearch
        Recordings of more than a minute are divided at pauses, where the
        language model begins anew.
    """
    found = []
    blanks = (scores.argmax(-1) == tokenizer.blank_id).tolist()
    cuts = cut_at_blanks(blanks, MAX_SEARCH_FRAMES)
    for start, stop in cuts:
        found += [
            _word(text, start + first, start + last)
            for text, first, last in search.words(scores[start:stop], tokenizer)
        ]
    return found


def cut_at_blanks(
    blanks: Sequence[bool], longest: int
) -> list[tuple[int, int]]:
    """Divide frames into stretches, each cut in the middle of a pause.

    Example
    -------
    >>> cut_at_blanks([False, False, True, True, False, False], 5)
    [(0, 3), (3, 6)]
    """
    cuts, start = [], 0
    while len(blanks) - start > longest:
        # The longest pause, but none so near that a stretch gets short.
        runs, frame = [], start + longest // 2
        for is_blank, run in groupby(blanks[frame : start + longest]):
            length = len(list(run))
            if is_blank:
                runs.append((length, frame + length // 2))
            frame += length
        stop = max(runs)[1] if runs else start + longest
        cuts.append((start, max(stop, start + 1)))
        start = cuts[-1][1]
    return [*cuts, (start, len(blanks))]


def _word(text: str, start: int, stop: int) -> Word:
    return Word(text, start / FRAMES_PER_SECOND, stop / FRAMES_PER_SECOND)
