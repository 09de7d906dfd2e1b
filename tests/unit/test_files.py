"""Files appear whole, with the user's permissions, or not at all."""

import errno
import os
import resource
import stat
import time

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


@pytest.mark.parametrize("hours, stays", [(0.5, True), (2, False)])
def test_without_locks_leftovers_go_by_their_age(
    tmp_path, monkeypatch, hours, stays
):
    def unsupported(*args):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr("summarymixing.files.fcntl.flock", unsupported)
    leftover = tmp_path / ".file.0123abcd.partial"
    leftover.write_text("half")
    os.utime(leftover, times=(time.time() - 3600 * hours,) * 2)
    with open_atomically(tmp_path / "file") as file:
        file.write("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert leftover.exists() == stays


def test_two_writers_do_not_mix_their_contents(tmp_path):
    path = tmp_path / "file"
    with open_atomically(path) as first:
        first.write("first")
        with open_atomically(path) as second:
            second.write("the second")
        assert path.read_text() == "the second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_another_process_does_not_remove_what_is_being_written(tmp_path):
    path = tmp_path / "file"
    with open_atomically(path) as file:
        child = os.fork()
        if child == 0:
            with open_atomically(path) as other:
                other.write("other")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        file.write("content")
    assert path.read_text() == "content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(exists, tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.write_text("before")
    link.symlink_to("folder/target")
    with open_atomically(link) as file:
        file.write("content")
    assert link.is_symlink()
    assert target.read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_atomically(pipe) as file:
        file.write("content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_that_is_full_is_an_error_and_stays(tmp_path):
    # Through a link of its own: a mistake would replace the link at worst.
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="full"),
        open_atomically(link) as file,
    ):
        file.write("content")
    assert link.is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError), open_atomically(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_is_read_only_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    path.chmod(0o444)
    with (
        pytest.raises(PermissionError, match=str(path)),
        open_atomically(path) as file,
    ):
        file.write("content")
    assert path.read_text() == "before"


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as caught, open_atomically(path):
        pass
    assert caught.value.filename == str(path)
