"""Receiving a photo: a multipart form or a bare body, bounded in bytes and time, straight into a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ipt_triton.client.gateway.problems import Problem
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.reading import shown

FILE_FIELD = "image"
_MOST_FIELDS, _FIELD_BYTES, _PIECE = 32, 2000, 2**20
_BARE_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Beside images; the second is what curl calls any body that it is not told about."""


@dataclass
class Upload:
    """What came: the file's bytes are at `path`; `name` is as the caller calls it, or empty."""

    path: Path
    name: str = ""
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, path: Path, settings: Settings) -> Upload:
    """Write the photo of a request to a file.

    Raises:
        Problem: 400 no photo in it, or no form; 408 it comes too slowly; 413 too long; 415 another kind of body.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    content_type = kind.decode("latin-1").lower()
    check_length(request, settings.max_upload_bytes)
    pieces = _pieces(request, settings)
    if content_type == "multipart/form-data":
        if not (boundary := options.get(b"boundary")):
            raise Problem(400, "the form lacks its boundary; let your HTTP library make the header Content-Type")
        upload = await _receive_form(pieces, boundary, path)
    elif content_type.startswith("image/") or content_type in _BARE_TYPES:
        upload = await _receive_bare(pieces, path)
    else:
        raise Problem(
            415,
            f"a body of type {shown(content_type)} is not taken; send multipart/form-data with the file as "
            f"{FILE_FIELD!r}, or the bare file as image/… or application/octet-stream",
            headers=_CLOSE,
        )
    return upload


_CLOSE = {"Connection": "close"}  # what else would the rest of the body be taken for


def check_length(request: Request, most: int) -> None:
    """Refuse a body that says itself that it is too long.

    Raises:
        Problem: 413.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_long(most)


def _too_long(most: int) -> Problem:
    return Problem(413, f"more than {most} bytes are not taken; send a smaller file", headers=_CLOSE)


def _no_photo() -> Problem:
    return Problem(400, f"there is no photo in the request; send it as {FILE_FIELD!r} of a form, or as the body")


async def _pieces(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body, as it comes."""
    number, stream = 0, request.stream()
    deadline = anyio.current_time() + settings.upload_s
    while True:
        try:
            with anyio.fail_after(min(settings.idle_s, deadline - anyio.current_time())):
                piece = await anext(stream, None)
        except TimeoutError:
            raise Problem(
                408,
                f"the body comes too slowly; {settings.idle_s:g} s may pass between its parts, {settings.upload_s:g} s "
                "in all",
                headers=_CLOSE,
            ) from None
        except ClientDisconnect:
            raise Problem(400, "the body ends before its time", headers=_CLOSE) from None
        if piece is None:
            return
        number += len(piece)
        if number > settings.max_upload_bytes:
            raise _too_long(settings.max_upload_bytes)
        yield piece


class _Writer:
    """Gathers pieces, and writes them without keeping others waiting."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._held, self.number = file, bytearray(), 0

    def add(self, piece: bytes) -> None:
        self._held += piece
        self.number += len(piece)

    async def flush(self, least: int = 0) -> None:
        if len(self._held) > least:
            held, self._held = self._held, bytearray()
            await to_thread.run_sync(self._file.write, held)


async def _receive_bare(pieces: AsyncIterator[bytes], path: Path) -> Upload:
    with path.open("wb") as file:
        writer = _Writer(file)
        async for piece in pieces:
            writer.add(piece)
            await writer.flush(_PIECE)
        await writer.flush()
    if not writer.number:
        raise _no_photo()
    return Upload(path)


class _Form:
    """Takes what python-multipart finds in a form: one file and short fields."""

    def __init__(self, writer: _Writer) -> None:
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self.ended = False
        self._writer = writer
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._field, self._is_file = "", bytearray(), False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._field = b"", bytearray()

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == FILE_FIELD
        if self._is_file:
            if self.file_name is not None:
                raise Problem(400, f"the form holds {FILE_FIELD!r} twice; send one photo at a time", headers=_CLOSE)
            self.file_name = options.get(b"filename", b"").decode(errors="replace")
        elif len(self.fields) >= _MOST_FIELDS:
            raise Problem(400, f"the form holds more than {_MOST_FIELDS} fields", headers=_CLOSE)
        elif b"filename" in options:
            raise Problem(400, f"the form's file is called {shown(self._name)}; call it {FILE_FIELD!r}", headers=_CLOSE)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._writer.add(data[start:end])
        elif len(self._field) + end - start > _FIELD_BYTES:
            raise Problem(
                400, f"the form's field {shown(self._name)} is longer than {_FIELD_BYTES} bytes", headers=_CLOSE
            )
        else:
            self._field += data[start:end]

    def _part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._field.decode(errors="replace")

    def _end(self) -> None:
        self.ended = True


async def _receive_form(pieces: AsyncIterator[bytes], boundary: bytes, path: Path) -> Upload:
    with path.open("wb") as file:
        writer = _Writer(file)
        form = _Form(writer)
        try:
            parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
            async for piece in pieces:
                parser.write(piece)
                await writer.flush(_PIECE)
        except FormParserError as error:
            raise Problem(400, f"the form cannot be read: {shown(str(error))}", headers=_CLOSE) from None
        await writer.flush()
    if not form.ended:
        raise Problem(400, "the form ends before its last boundary")
    if not writer.number:
        raise _no_photo()
    return Upload(path, form.file_name or "", form.fields)
