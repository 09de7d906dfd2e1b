"""Show runs of pre-training on one page, also while they go on.

python recipes/pretraining/watch.py RUN [RUN ...]
python recipes/pretraining/watch.py RUN [RUN ...] --serve

RUN is the --output_folder of a run. The page needs no network and no script;
with --serve it is made again whenever a run has logged something.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from summarymixing.errors import UserError, exit_on_user_error
from summarymixing.files import describe_os_error, open_atomically
from summarymixing.html_page import Page
from summarymixing.run.history import (
    fingerprint,
    name_runs,
    read_run,
)
from summarymixing.training.watch_page import (
    is_comparable,
    keep_reference,
    make_page,
)

# A healthy run of hparams/pretraining/tiny.yaml.
REFERENCE = Path(__file__).with_name("reference_tiny")
PORT = 8321
ASK_S = 15  # how often an open page asks whether there is something new
RELOAD = """
setInterval(async () => {
  try {
    const answer = await fetch("version");
    if (answer.ok && await answer.text() !== %s) location.reload();
  } catch (error) {}  // the server may come back
}, %d);
"""


class Watch:
    """Runs, and the page about them as they are now.

    Arguments
    ---------
    folders : sequence of Path
        The output folders of the runs. UserError where one is none.
    reference : Path, optional
        The folder of a healthy run that is drawn in grey. The one that comes
        with this script is drawn where it has the model of a run.
    """

    def __init__(
        self, folders: Sequence[Path], reference: Path | None = REFERENCE
    ) -> None:
        # One given twice is shown once.
        self.folders = list({f.resolve(): f for f in folders}.values())
        self.names = name_runs(self.folders)
        self.reference = None if reference is None else read_run(reference)
        self._lock = threading.RLock()  # requests come in threads
        self._found: list[object] = []
        self._html = {"": ""}  # of the last page, by its version
        self.version()

    def version(self) -> str:
        """Read what is new; return a text that changes when the page does."""
        with self._lock:
            found: list[object] = [fingerprint(f) for f in self.folders]
            if found != self._found:
                runs = map(read_run, self.folders)
                self.runs = dict(zip(self.names, runs, strict=True))
                self._found = found
            # A run falls silent without writing anything.
            states = [run.state(time.time()) for run in self.runs.values()]
        return hashlib.sha256(repr((found, states)).encode()).hexdigest()[:16]

    def page(self) -> Page:
        """Return the page about what was read last."""
        reference = self.reference
        if reference is not None and reference.folder == REFERENCE:
            runs = self.runs.values()
            if not any(is_comparable(run, reference) for run in runs):
                reference = None
        return make_page(self.runs, reference, datetime.datetime.now())

    def html(self) -> str:
        """Return the page as it is served, which renews itself."""
        with self._lock:
            version = self.version()
            if version not in self._html:
                page = self.page()
                page.script(RELOAD % (json.dumps(version), 1000 * ASK_S))
                self._html = {version: page.html()}
            return self._html[version]


class Server(ThreadingHTTPServer):
    """Serves the page at / and its version at /version, and nothing else.

    Arguments
    ---------
    watch : Watch
        What is served.
    host : str
        The address that others reach it at; 127.0.0.1 is this machine alone.
    port : int
        0 for any that is free. UserError where it is taken.
    """

    daemon_threads = True

    def __init__(self, watch: Watch, host: str, port: int) -> None:
        self.watch = watch
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise UserError(
                f"{host}, port {port}: {error.strerror}; give another one, "
                "as in --serve=8322"
            ) from error


class Handler(BaseHTTPRequestHandler):
    """Answers one request to a `Server`."""

    def do_GET(self) -> None:
        """Send the page, or its version."""
        assert isinstance(self.server, Server)
        watch = self.server.watch
        kind, make = {
            "/": ("text/html", watch.html),
            "/version": ("text/plain", watch.version),
        }.get(self.path.partition("?")[0], ("", None))
        if make is None:
            self.send_error(404)
            return
        try:
            content = make().encode()
        except (UserError, OSError) as error:  # a folder has gone
            self.send_error(503, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        with contextlib.suppress(ConnectionError):  # the reader has left
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the screen free of requests."""


def main() -> None:
    """Write the page, or serve it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN")
    add(
        "--output",
        type=Path,
        default=Path("watch.html"),
        metavar="FILE",
        help="where the page goes (default: %(default)s)",
    )
    add(
        "--reference",
        default=str(REFERENCE),
        metavar="RUN",
        help="a healthy run to draw in grey, or none; by default one of "
        "tiny.yaml, beside runs of its model",
    )
    add(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="write a small copy of the one RUN instead, for --reference",
    )
    add(
        "--serve",
        type=int,
        nargs="?",
        const=PORT,
        metavar="PORT",
        help=f"serve the page instead, renewed, at this port ({PORT}; 0 for "
        "any that is free); write it behind the runs",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to serve at (default: %(default)s, this machine alone)",
    )
    options = parser.parse_args()
    try:
        if options.keep:
            if len(options.runs) > 1:
                parser.error("--keep takes one RUN")
            keep_reference(read_run(options.runs[0]), options.keep)
            return
        is_none = options.reference == "none"
        reference = None if is_none else Path(options.reference)
        watch = Watch(options.runs, reference)
        if options.serve is None:
            with open_atomically(options.output, durable=False) as file:
                file.write(watch.page().html())
            print(f"Open {options.output.resolve().as_uri()}")
            return
    except OSError as error:
        raise UserError(describe_os_error(error)) from error
    with Server(watch, options.host, options.serve) as server:
        place = f"{options.host}:{server.server_port}"
        print(f"Open http://{place}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    exit_on_user_error(main)
