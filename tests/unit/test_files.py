"""Files appear whole, with the user's permissions, or not at all."""

import os
import resource
import stat

import pytest

from summarymixing.files import open_atomically


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_the_mode_follows_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with open_atomically(tmp_path / "file", binary=True) as file:
            file.write(b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("content", ["x" * 9000, b"x" * 9000])
def test_a_full_disk_is_an_error_that_names_the_file(content, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=str(path)),
            open_atomically(path, binary=isinstance(content, bytes)) as file,
        ):
            file.write(content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_behind_is_written_over(tmp_path):
    child = os.fork()
    if child == 0:
        with open_atomically(tmp_path / "file") as file:
            file.write("half")
            file.flush()
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert not (tmp_path / "file").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with open_atomically(tmp_path / "file") as file:
        file.write("whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
