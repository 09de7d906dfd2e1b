"""The README.md of an encoder folder, in the form that model hubs show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# What the names in `trained_on` mean; the others explain themselves.
MEANINGS = {
    "update": "updates",
    "max_updates": "planned updates",
    "train_hours": "hours of audio to train on",
    "audio_hours": "hours of audio seen, repetitions included",
    "gpu_hours": "GPU hours",
    "skipped_updates": "updates skipped for gradients that were not finite",
}

HERE = "path/to/this/folder"  # a hub has a name in its place

CARD = """---
library_name: summarymixing
pipeline_tag: feature-extraction
{licence_entry}tags:
- speech
- self-supervised-learning
- wav2vec2
- "{tag}"
---

# Speech encoder: wav2vec 2.0 with {mixer}

A Conformer of {num_layers} layers of width {d_model}, mixed by `{path}`. It
turns audio of 16 kHz into {frames} frames per second.

## Use

```python
from summarymixing import Wav2Vec2Encoder{extra_import}
encoder = Wav2Vec2Encoder.from_pretrained("{here}"{extra})
states = encoder(wavs, wav_lens).hidden_states
```

`wavs` are (batch, samples); `wav_lens` are lengths relative to the longest.
{training}
## Licence

The code of summarymixing is Apache-2.0. {licence}
"""


def model_card(config: Mapping[str, Any]) -> str:
    """Describe an encoder in markdown, with YAML front matter for hubs.

    What users wrote into `trained_on` stays text: it is neither markdown,
    HTML nor YAML.

    Arguments
    ---------
    config : mapping
        The content of encoder.json. The card shows the numbers in
        `trained_on` and `licence`, the licence of the weights.
    """
    architecture, trained_on = config["architecture"], config["trained_on"]
    path = architecture["mixer"]["class"]
    module, _, mixer = path.rpartition(".")
    is_ours = module.startswith("summarymixing.")
    licence = _as_text(trained_on.get("licence") or "")
    # Hubs know licences by such names; "other" is theirs for all others.
    known = licence if re.fullmatch(r"[\w.+-]+", licence, re.ASCII) else "other"
    rows = [f"| {name} | {value} |" for name, value in _numbers(trained_on)]
    table = ["", "## Training", "", "| | |", "|---|---|", *rows, ""]
    return CARD.format(
        here=HERE,
        num_layers=architecture["num_layers"],
        d_model=architecture["d_model"],
        frames=config["frames_per_second"],
        mixer=mixer,
        path=path,
        tag=mixer.lower(),
        extra_import="" if is_ours else f"\nfrom {module} import {mixer}",
        extra="" if is_ours else f", mixer={mixer}",
        training="\n".join(table) if rows else "",
        licence_entry=f'license: "{known}"\n' if licence else "",
        licence=f"The licence of the weights is {licence}."
        if licence
        else "Whoever trained the weights decides on theirs.",
    )


def _as_text(value: Any) -> str:
    """Return one line that markdown shows as it is."""
    line = " ".join(str(value).split())
    printable = "".join(filter(str.isprintable, line))
    return re.sub(r"([^\w\s.,:+/()-])", r"\\\1", printable)


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of every number, those of inner mappings too."""
    for key, value in facts.items():
        name = MEANINGS.get(key) or _as_text(key).replace("_", " ")
        if isinstance(value, Mapping):
            for inner, shown in _numbers(value):
                yield f"{name}: {inner}", shown
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, f"{value:,}"
        elif isinstance(value, float):
            yield name, f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
