"""Files on the HuggingFace hub, through the hub's own client.

Nothing that is downloaded is executed. A token, where one is needed, is what
`hf auth login` stored, or the environment variable HF_TOKEN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from summarymixing.errors import UserError


def is_hub_name(source: str) -> bool:
    """Return whether `source` could be USER/NAME on the hub.

    Example
    -------
    >>> is_hub_name("user/name"), is_hub_name("a/b/encoder"), is_hub_name("./a")
    (True, False, False)
    """
    word = r"\w[\w.-]*"
    return re.fullmatch(f"{word}/{word}", source, re.ASCII) is not None


@contextmanager
def _explained(name: str, revision: str | None = None) -> Iterator[Any]:
    """Hand out the client, and turn its errors into messages for users."""
    try:
        import huggingface_hub as client
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{name} is no folder here, and the package huggingface_hub, which "
            'fetches it from the hub, is missing: pip install "summarymixing'
            '[hub]"'
        ) from error
    try:
        yield client
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name} on the hub has no revision {revision}; give a branch, a "
            "tag or a commit of it"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} on the hub must be asked for: accept its terms on its "
            "page, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is no folder here, and the hub has no such name, or does "
            "not show it to you: check the spelling; if it is private, log in "
            "with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is no folder here, and the hub cannot be reached to fetch "
            "it; try again with a network, or copy the folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        hint = "; log in with `hf auth login`" if status in (401, 403) else ""
        raise UserError(f"{name}: the hub refuses: {error}{hint}") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(f"{name}: the hub is out of reach: {error}") from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{name} cannot be a name on the hub: {error}"
        ) from error


def has_file(name: str, file: str) -> bool:
    """Return whether USER/NAME has a file, as far as hub or cache can tell.

    UserError if there is no such name.
    """
    with _explained(name) as client:
        try:
            client.hf_hub_download(name, file)
        except client.errors.EntryNotFoundError:
            return False
        return True


def download(
    name: str,
    files: list[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Fetch some files of a model, or find them in the client's cache.

    Arguments
    ---------
    name : str
        USER/NAME.
    files : list of str
        The files; all others stay where they are.
    revision : str, optional
        A branch, tag or commit; the newest version without it.
    cache_dir : str or Path, optional
        In place of the client's own cache.

    Returns
    -------
    Path
        The folder that holds them.

    Raises
    ------
    UserError
        If the client is not installed, if there is no such name or revision,
        if it is not for this user, or if the hub is out of reach.
    """
    with _explained(name, revision) as client:
        return Path(
            client.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=files,
            )
        )


def upload(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool = False,
    message: str,
) -> tuple[str, str]:
    """Publish files in one commit, in a repository that is made if need be.

    Arguments
    ---------
    name : str
        USER/NAME.
    files : mapping
        What each file of the repository holds.
    private : bool
        Only the user may see it. UserError if it is there and public.
    message : str
        Of the commit.

    Returns
    -------
    str
        The address of the repository.
    str
        The commit.
    """
    with _explained(name) as client:
        api = client.HfApi()
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise UserError(
                f"{name} exists and is public: make it private in its "
                "settings, choose another name, or leave --private out"
            )
        commit = api.create_commit(
            name,
            [
                client.CommitOperationAdd(path, content)
                for path, content in files.items()
            ],
            commit_message=message,
        )
        return str(url), str(commit.oid)
