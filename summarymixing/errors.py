"""How a command ends: its exit status, and the one error shown as a message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

USER_ERROR_STATUS = 2  # the status that argparse uses for a wrong command
DATA_ERROR_STATUS = 65  # EX_DATAERR: done, but for input that is damaged
STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "try again later"
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells report it

# In the output folder of a run that was asked to stop: torchrun ends with
# status 1 whatever its processes end with.
STOPPED_NAME = "stopped"


class UserError(Exception):
    """A mistake that the user can repair; shown without a traceback.

    The message says what is wrong, where (file, line, key) and how to repair
    it.
    """


def exit_on_user_error(main: Callable[[], Result]) -> Result:
    """Run an entry point; a `UserError` ends it with a message and status 2.

    Every other exception is a defect of the program and keeps its traceback.

    Arguments
    ---------
    main : Callable
        The entry point; called at once, without arguments.

    Returns
    -------
    Result
        What `main` returns.

    Example
    -------
    >>> exit_on_user_error(lambda: 3)
    3
    """
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
