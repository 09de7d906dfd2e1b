"""Item files: read by column, with messages that name the line."""

from decimal import Decimal
from pathlib import Path

import pytest

from summarymixing.data.items import (
    Item,
    find_recordings,
    read_items,
    write_items,
)
from summarymixing.errors import UserError

HEADER = "#file onset offset #phone prev-phone next-phone speaker\n"
LINE = "a 0.2325 0.3425 IH M S 1272\n"


def read(tmp_path, text):
    path = tmp_path / "dev.item"
    path.write_text(text)
    return read_items(path)


def test_items_are_read_by_column(tmp_path):
    times = Decimal("0.2325"), Decimal("0.3425")
    expected = [Item("a", *times, "IH", "M", "S", "1272")]
    assert read(tmp_path, HEADER + LINE) == expected
    columns = "onset #file word offset speaker #phone next-phone prev-phone\n"
    line = "0.2325 a MISS 0.3425 1272 IH S M\n\n"
    assert read(tmp_path, columns + line) == expected


def test_items_that_were_written_are_read(tmp_path):
    items = read(tmp_path, HEADER + LINE)
    write_items(tmp_path / "again.item", items)
    assert (tmp_path / "again.item").read_text() == HEADER + LINE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("#file onset offset #phone speaker\n", "lacks prev-phone, next-phone"),
        (HEADER, "no items"),
        (HEADER + LINE + "a 0.1 0.2 IH M S\n", "line 3"),
        (HEADER + "a 0.1 soon IH M S 1\n", "line 2"),
        (HEADER + "a 0.3 0.2 IH M S 1\n", "onset < offset"),
        (HEADER + "a nan 0.2 IH M S 1\n", "line 2"),
    ],
)
def test_what_is_no_item_file_is_explained(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "dev.item" in str(caught.value)


def test_a_missing_item_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_items(tmp_path / "none.item")


@pytest.mark.parametrize(
    ("onset", "offset", "frames"),
    [
        ("0.01", "0.03", (0, 2)),  # both middles are on a border
        ("0.0101", "0.03", (1, 2)),
        ("0.01", "0.0299", (0, 1)),
        ("0.0101", "0.0299", (1, 1)),  # between two middles
        ("1.15", "1.25", (57, 63)),  # floats would lose a frame
    ],
)
def test_frames_have_their_middle_in_the_item(onset, offset, frames):
    item = Item("a", Decimal(onset), Decimal(offset), "IH", "M", "S", "1")
    assert item.frames(50) == frames


def test_recordings_are_found_by_name_or_by_path():
    root = Path("/corpus")
    among = [root / "x/a.flac", root / "y/a.flac", root / "y/b.flac"]
    found = find_recordings(["x/a", "b"], among, root)
    assert found == {"x/a": among[0], "b": among[2]}
    with pytest.raises(UserError, match="more than one recording 'a'"):
        find_recordings(["a"], among, root)
    with pytest.raises(UserError, match="1 of 2 .* c. Give the folder"):
        find_recordings(["b", "c"], among, root)
