"""Restore one photograph in Python, through a running server.

    make serve                                                          # in another terminal
    .venv/bin/python examples/restore.py photo.jpg sr_x2 restored.png

Any mode and depth that `ipt-restore` takes: a photograph's alpha channel is restored as a plane of its own.
"""

from __future__ import annotations

import argparse
import sys

from ipt_triton import RestorationClient, RestorationError, read_photo, write_photo


def main() -> int:
    """The script; returns its exit status: 0 restored, 2 no server, no such task or no photograph."""
    parser = argparse.ArgumentParser(description="Restore one photograph through a running server.")
    parser.add_argument("photo", help="image file")
    parser.add_argument("task", help="name or id")
    parser.add_argument("output", help="file to write; its ending decides the format")
    parser.add_argument("--url", default="localhost:8001", help="HOST:PORT of the server's gRPC port (%(default)s)")
    arguments = parser.parse_args()
    try:
        photo = read_photo(arguments.photo)
        with RestorationClient(arguments.url) as client:
            planes = [client.restore(plane, arguments.task) for plane in photo.planes()]
        write_photo(photo.with_planes(planes), arguments.output)
    except RestorationError as error:  # the base of all errors of the client: a sentence that says what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
