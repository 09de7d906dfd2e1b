"""The process that holds espeak-ng: one order on stdin, speech on stdout.

It runs as a script of its own and imports the standard library only, so that
it starts in a few hundredths of a second. `espeak.py` is its only caller.

stdin: a JSON object with library, data, phonemes and lines; each line has
text, name, pitch and words_per_minute.
stdout: for each line two blocks, each with 4 bytes little-endian before it that
give its number of bytes. First 16-bit samples in native byte order at 22,050
Hz; then, where phonemes is true, a JSON list of the name of each phoneme and
the sample that it begins at. Asking for them changes no sample.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

# Names and values of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_PHONEME_EVENTS = 0x0001
INITIALIZE_DONT_EXIT = 0x8000
LIST_TERMINATED, PHONEME = 0, 7  # types of events
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
RATE, VOLUME, PITCH = 1, 2, 3

ESPEAK_RATE_HZ = 22_050
VOLUME_PERCENT = 40  # at 100, the default, a third of the variants saturate


class Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        # A union with a number and a pointer, which has the same size.
        ("string", ctypes.c_char * 8),
    ]


SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(Event),
)


def speak(order: dict[str, Any]) -> Iterator[bytes]:
    """Yield the blocks of each line of an order, see the head of this file."""
    espeak = _start(order)
    samples = bytearray()
    phonemes: list[tuple[str, int]] = []

    def collect(wave: Any, num_samples: int, events: Any) -> int:
        if wave and num_samples > 0:
            samples.extend(ctypes.string_at(wave, 2 * num_samples))
        number = 0
        while events[number].type != LIST_TERMINATED:
            event = events[number]
            if event.type == PHONEME:
                phonemes.append((event.string.decode(), event.sample))
            number += 1
        return 0  # go on

    callback = SYNTH_CALLBACK(collect)  # the library keeps no reference
    espeak.espeak_SetSynthCallback(callback)
    for line in order["lines"]:
        _set_voice(espeak, line)
        samples.clear()
        phonemes.clear()
        utf8 = line["text"].encode()
        size = ctypes.c_size_t(len(utf8) + 1)
        espeak.espeak_Synth(
            utf8, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None
        )
        espeak.espeak_Synchronize()
        yield bytes(samples)
        yield json.dumps(phonemes).encode()


def _start(order: dict[str, Any]) -> ctypes.CDLL:
    """Load the library; its messages name what is missing."""
    espeak = ctypes.CDLL(order["library"])
    rate_hz = espeak.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS,
        0,
        order["data"].encode(),
        INITIALIZE_DONT_EXIT
        | (INITIALIZE_PHONEME_EVENTS if order["phonemes"] else 0),
    )
    if rate_hz != ESPEAK_RATE_HZ:
        sys.exit(f"espeak_Initialize returned {rate_hz} for {order['data']}")
    # Seeded with the time of day otherwise; some variants use it.
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
    espeak.espeak_SetParameter(VOLUME, VOLUME_PERCENT, 0)
    return espeak


def _set_voice(espeak: ctypes.CDLL, line: dict[str, Any]) -> None:
    status = espeak.espeak_SetVoiceByName(line["name"].encode())
    if status != 0:
        sys.exit(f"no voice {line['name']!r} (status {status})")
    espeak.espeak_SetParameter(RATE, line["words_per_minute"], 0)
    espeak.espeak_SetParameter(PITCH, line["pitch"], 0)


def main() -> None:
    """Read one order, write its blocks."""
    for block in speak(json.load(sys.stdin)):
        sys.stdout.buffer.write(len(block).to_bytes(4, "little"))
        sys.stdout.buffer.write(block)


if __name__ == "__main__":
    main()
