"""The files of a checkpoint: flushed, listed in a manifest and compared."""

from __future__ import annotations

import json
from pathlib import Path

from speechbrain.utils.checkpoints import CKPT_PREFIX, METAFNAME

from summarymixing.files import describe_os_error, flush, sha256_of

MANIFEST_NAME = "MANIFEST.json"


def checkpoint_folders(checkpoints_dir: Path) -> list[Path]:
    """Return the folders that look like checkpoints, whole or not."""
    if not checkpoints_dir.is_dir():
        return []
    found = checkpoints_dir.glob(f"{CKPT_PREFIX}*")
    return sorted(path for path in found if path.is_dir())


def seal(folder: Path) -> None:
    """Flush the files of a checkpoint to the disk; add the manifest last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        flush(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"files": files}, indent=1), "utf-8")
    flush(manifest)
    flush(folder)


def damage_of(folder: Path, compare_content: bool = False) -> str | None:
    """Return why a checkpoint cannot be trusted, or None if it can.

    Arguments
    ---------
    folder : Path
        The checkpoint.
    compare_content : bool
        Also read every file and compare checksums, about a second for each
        gigabyte. Of the small one that orders the checkpoints, always.

    Returns
    -------
    str or None
        Which file is missing, has another size or other content.
    """
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))["files"]
        for name, expected in files.items():
            path, size = folder / name, expected["bytes"]
            if path.stat().st_size != size:
                return f"{path.name} has {path.stat().st_size} of {size} bytes"
            compare = compare_content or name == METAFNAME
            if compare and sha256_of(path) != expected["sha256"]:
                return f"the content of {path.name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return describe_os_error(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_NAME} is not readable"
    if METAFNAME not in files:
        return f"{MANIFEST_NAME} does not list {METAFNAME}"
    return None
