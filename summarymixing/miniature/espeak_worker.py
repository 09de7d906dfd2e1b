"""The process that holds espeak-ng: one order on stdin, samples on stdout.

It runs as a script of its own and imports the standard library only, so that
it starts in a few hundredths of a second. `espeak.py` is its only caller.

stdin: a JSON object with library, data and lines; each line has text, name,
pitch and words_per_minute.
stdout: for each line, 4 bytes little-endian with the number of bytes that
follow, then 16-bit samples in native byte order at 22,050 Hz.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

# Names and values of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
RATE, VOLUME, PITCH = 1, 2, 3

ESPEAK_RATE_HZ = 22_050
VOLUME_PERCENT = 40  # at 100, the default, a third of the variants saturate

SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def speak(order: dict[str, Any]) -> Iterator[bytes]:
    """Yield the samples of each line of an order, see the head of this file."""
    espeak = _start(order)
    samples = bytearray()

    def collect(wave: Any, num_samples: int, _events: int) -> int:
        if wave and num_samples > 0:
            samples.extend(ctypes.string_at(wave, 2 * num_samples))
        return 0  # go on

    callback = SYNTH_CALLBACK(collect)  # the library keeps no reference
    espeak.espeak_SetSynthCallback(callback)
    for line in order["lines"]:
        _set_voice(espeak, line)
        samples.clear()
        utf8 = line["text"].encode()
        size = ctypes.c_size_t(len(utf8) + 1)
        espeak.espeak_Synth(
            utf8, size, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None
        )
        espeak.espeak_Synchronize()
        yield bytes(samples)


def _start(order: dict[str, Any]) -> ctypes.CDLL:
    """Load the library; its messages name what is missing."""
    espeak = ctypes.CDLL(order["library"])
    rate_hz = espeak.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS,
        0,
        order["data"].encode(),
        INITIALIZE_DONT_EXIT,
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
    """Read one order, write its samples."""
    for samples in speak(json.load(sys.stdin)):
        sys.stdout.buffer.write(len(samples).to_bytes(4, "little"))
        sys.stdout.buffer.write(samples)


if __name__ == "__main__":
    main()
