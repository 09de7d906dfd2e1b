r"""Publish an encoder on the HuggingFace hub.

hf auth login
summarymixing push results/base/encoder user/name --private

ENCODER, a folder that a run wrote, is loaded first, so that nothing damaged is
published. Its three files go up in one commit. Then anybody, or only you with
--private, loads it with Wav2Vec2Encoder.from_pretrained("user/name"), and
--encoder=user/name takes it; the command ends with the line that also pins
this version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from summarymixing.errors import UserError
from summarymixing.options import argument, option


@dataclass(frozen=True)
class Options:
    """The options of `summarymixing push`."""

    encoder: Path = argument("the folder `encoder` of a run", metavar="ENCODER")
    name: str = argument("name on the hub", metavar="USER/NAME")
    private: bool = option(False, "let nobody else see it")
    message: str = option("Upload a speech encoder", "of the commit")
    mixer: str | None = option(
        None,
        "class of the mixers, if it is not one of this package: "
        "my_package.MyMixer",
    )


def run(options: Options) -> int:
    """Check and publish; returns the exit status."""
    from summarymixing.cli.values import find_mixer
    from summarymixing.hub import is_hub_name, upload
    from summarymixing.lobes.wav2vec2 import Wav2Vec2Encoder
    from summarymixing.pretrained import (
        CARD_NAME,
        CONFIG_NAME,
        WEIGHTS_NAME,
        digest_of_folder,
        read_card,
        read_config,
    )

    folder, name = options.encoder, options.name
    if not is_hub_name(name):
        raise UserError(f"{name} is no name on the hub: give it as user/name")
    read_config(folder)  # of a folder: what is on the hub is not pushed again
    Wav2Vec2Encoder.from_pretrained(folder, mixer=find_mixer(options.mixer))
    url, commit = upload(
        name,
        {
            CARD_NAME: read_card(folder, name).encode(),
            CONFIG_NAME: folder / CONFIG_NAME,
            WEIGHTS_NAME: folder / WEIGHTS_NAME,
        },
        private=options.private,
        message=options.message,
    )
    print(
        f"{url}\n\nWav2Vec2Encoder.from_pretrained(\n"
        f'    "{name}",\n'
        f'    revision="{commit}",\n'
        f'    digest="{digest_of_folder(folder)}",\n)'
    )
    return 0
