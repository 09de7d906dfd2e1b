"""What the Conformer expects of a mixer, and how a file names one."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from summarymixing.errors import UserError

PACKAGE = "summarymixing.nnet"


class Mixer(Protocol):
    """A module that mixes the frames of each utterance over time.

    A class of mixers makes four promises; tests/unit/nnet/test_mixers.py
    tests them for every class in its list.

    1. It is called as `mixer(x, padding_mask)` and returns a tensor.
    2. What padding holds reaches no valid frame and no gradient; the
       result is zero on padding.
    3. It is a `torch.nn.Module` made by `Class(d_model, **keywords)`. The
       keywords have defaults, and their values can be written as JSON.
    4. `dropout` is one of the keywords: `mixer_dropout` of fine-tuning
       sets it.
    """

    def __call__(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Mix frames.

        Arguments
        ---------
        x : Tensor, (B, T, D)
            Frames; padding may hold anything, NaN included.
        padding_mask : Tensor, bool, (B, T), or None
            True on padding; None if there is none.

        Returns
        -------
        Tensor, (B, T, D)
            Mixed frames, zero on padding.
        """
        ...


@runtime_checkable
class BlockwiseMixer(Mixer, Protocol):
    """A mixer that sees an utterance as a whole through one mean alone.

    Its utterances can then be mixed in blocks, in two passes: the first adds
    up what `summarise` returns for each block, the second gives `combine` the
    sum divided by the number of frames. So hours of audio are encoded in the
    memory of one block, and exactly:

        mixer(x, None) == mixer.combine(x, mixer.summarise(x, None) / T, None)
    """

    def summarise(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Add up what the summary is the mean of.

        Arguments
        ---------
        x, padding_mask
            As of `Mixer`; the frames may be any part of an utterance.

        Returns
        -------
        Tensor, at least float32, (B, K)
            Sums over the valid frames; those of blocks can be added.
        """
        ...

    def combine(
        self, x: Tensor, summary: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        """Mix frames, given the summary of their whole utterance.

        Arguments
        ---------
        x, padding_mask
            As of `Mixer`; the frames may be any part of an utterance.
        summary : Tensor, (B, K)
            The mean over all valid frames of the utterance.

        Returns
        -------
        Tensor, (B, T, D)
            Mixed frames, zero on padding.
        """
        ...


MixerFactory = Callable[[int], Mixer]  # d_model -> mixer


def describe_mixer(mixer: MixerFactory) -> dict[str, Any]:
    """Name a class of mixers and its keywords, for the encoder's file.

    Arguments
    ---------
    mixer : callable
        A class, or a `functools.partial` of one with keywords. UserError if
        the class cannot be found by its name, or a keyword is not JSON.

    Example
    -------
    >>> from summarymixing.nnet.summary_mixing import SummaryMixing
    >>> describe_mixer(partial(SummaryMixing, num_heads=4))
    {'class': 'summarymixing.nnet.summary_mixing.SummaryMixing', 'num_heads': 4}
    """
    keywords: dict[str, Any] = {}
    found: Any = mixer
    if isinstance(mixer, partial):
        keywords, found = mixer.keywords, mixer.func
        if mixer.args:
            raise UserError(
                f"the mixer {mixer} has arguments without names, which would "
                f"be taken for d_model; give them as keywords."
            )
    if not _is_importable(found):
        raise UserError(
            f"the mixer {found!r} cannot be found again by its name when the "
            f"encoder is loaded. Define it as a class (torch.nn.Module) at the "
            f"top level of a file that can be imported, and give its keywords "
            f"as functools.partial(Class, keyword=value)."
        )
    try:
        is_json = json.loads(json.dumps(keywords)) == keywords
    except (TypeError, ValueError):
        is_json = False
    if not is_json:
        raise UserError(
            f"the keywords {keywords} of {found.__name__} cannot be written as "
            f"JSON; use numbers, strings, booleans, None, lists and dicts with "
            f"strings as keys."
        )
    return {"class": f"{found.__module__}.{found.__name__}", **keywords}


def _is_importable(found: Any) -> bool:
    # A class of a script, `__main__`, has another name in other programs.
    return (
        inspect.isclass(found)
        and found.__module__ != "__main__"
        and _is_dotted_name(f"{found.__module__}.{found.__name__}")
        and _find_class(found.__module__, found.__name__) is found
    )


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _find_class(module_name: str, name: str) -> type[nn.Module] | None:
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        return None
    is_module = inspect.isclass(found) and issubclass(found, nn.Module)
    return found if is_module else None


def mixer_from_description(
    description: dict[str, Any], mixer: MixerFactory | None = None
) -> MixerFactory:
    """Return the factory that `describe_mixer` described.

    A description comes from a file that may have been downloaded, and must
    not be able to run code: a name alone finds only a class of this package.

    Arguments
    ---------
    description : dict
        What `describe_mixer` returned.
    mixer : callable, optional
        The described class; needed if it is from outside this package.

    Raises
    ------
    UserError
        If `mixer` is missing or is not the one described.
    ValueError
        If this package has no such mixer.
    """
    keywords = dict(description)
    name = str(keywords.pop("class"))
    module_name, _, class_name = name.rpartition(".")
    if mixer is not None:
        given = describe_mixer(mixer)
        if {**description, **given} != description:
            raise UserError(
                f"the mixer of this encoder is {description}, not {given}; "
                f"name that class, without keywords"
            )
        found: Any = mixer.func if isinstance(mixer, partial) else mixer
        return partial(found, **keywords)
    is_ours = module_name.startswith(f"{PACKAGE}.")
    # The message shows code to run: no more of a file than a name gets in.
    if _is_dotted_name(name) and module_name and not is_ours:
        raise UserError(
            f"{name} is not a mixer of this package. If you trust it, load the "
            f"encoder with `from {module_name} import {class_name}` and "
            f"Wav2Vec2Encoder.from_pretrained(folder, mixer={class_name}), or "
            f"name it on the command line: --mixer=!name:{name}"
        )
    found = _find_class(module_name, class_name) if is_ours else None
    if found is None:
        raise ValueError(f"{name!r} is not a mixer of this package")
    return partial(found, **keywords)
