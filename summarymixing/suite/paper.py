"""Table 2 of the paper, quoted beside what is measured.

Zhang, Parcollet, van Dalen, Bhattacharya: Linear-Complexity Self-Supervised
Learning for Speech Processing. Interspeech 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TITLE = "table 2 of Zhang et al., Interspeech 2024"
MARK = "[paper]"
NOTE = (
    f"Rows marked {MARK} are quoted from {TITLE}; nothing in them was measured "
    "here. The last four are from the literature and were pre-trained on other "
    "data. Their one LibriSpeech number is listed under ContextNet, which is "
    "how we read that table."
)


@dataclass(frozen=True)
class Quoted:
    """A row of the paper.

    Arguments
    ---------
    name : str
        Of the encoder.
    size_m : int, optional
        Million parameters. The table names those of its own models and of
        the first two large ones; the text has that of w2v2 base.
    percent : mapping
        Task and split -> number; what the table leaves open is not there.
    """

    name: str
    size_m: int | None
    percent: Mapping[tuple[str, str], float] = field(default_factory=dict)


COLUMNS = (
    ("librispeech_lstm", "test-other"),
    ("librispeech_contextnet", "test-other"),
    ("commonvoice_cy_lstm", "dev"),
    ("commonvoice_cy_lstm", "test"),
    ("commonvoice_eu_lstm", "dev"),
    ("commonvoice_eu_lstm", "test"),
    ("slurp_lstm", "test"),
    ("iemocap_ecapa", "utterances"),
    ("voxceleb1_ecapa", "test"),
)


def _row(name: str, size_m: int | None, numbers: str) -> Quoted:
    cells = zip(COLUMNS, numbers.split(), strict=True)
    return Quoted(name, size_m, {c: float(n) for c, n in cells if n != "-"})


ROWS = (
    _row("MHSA", 165, "21.4 21.3 48.8 50.8 43.6 44.0 78.1 64.8 2.6"),
    _row("SummaryMixing", 155, "17.3 17.2 45.7 48.3 41.4 42.1 80.5 64.3 2.4"),
    _row("w2v2 base", 95, "- 14.9 - 54.5 - 51.3 77.7 73.2 2.8"),
    _row("w2v2 large", 317, "- 9.3 - 45.4 - 38.0 79.0 68.4 3.2"),
    _row("HuBERT large", 317, "- 8.1 - 51.2 - 46.2 80.1 71.6 3.8"),
    _row("data2vec large", None, "- 6.5 - 44.3 - 38.2 79.9 71.3 2.7"),
)
