"""The base of every error that is meant for people."""

from __future__ import annotations


class IptError(Exception):
    """Something that a person can mend: the message is a sentence with the value, what is allowed and what to do.

    Rooms and their packages have bases of their own below this one. `cli.run_command` prints the message.

    Attributes:
        status: exit status of a command that ends with the error: 1 failed, 2 wrong arguments or data.
    """

    status = 1
