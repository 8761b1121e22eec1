"""XMP packets: what is no longer true is taken out, and what was done to the picture is put in."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from xml.dom import minidom
from xml.sax.saxutils import unescape

from ipt_triton.reading import excerpt
from ipt_triton.version import installed_version

log = logging.getLogger(__name__)

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
# Orientation is applied on reading; the sizes are another picture's; extended XMP lies outside of the packet.
_UNTRUE = (
    (_TIFF, "Orientation"),
    (_TIFF, "ImageWidth"),
    (_TIFF, "ImageLength"),
    (_EXIF, "PixelXDimension"),
    (_EXIF, "PixelYDimension"),
    (_NOTE, "HasExtendedXMP"),
)
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = '\n<?xpacket end="w"?>'
_AGENT = "ipt-triton"
_OURS = f"<stEvt:softwareAgent>{_AGENT} ".encode()
_OUR_ACTION = re.compile(_OURS + rb"[^<]*</stEvt:softwareAgent><stEvt:parameters>([^<]*)</stEvt:parameters>")
_HEAD_BYTES, _TAIL_BYTES = 2**18, 2**17
"""Where formats keep XMP: a WebP at its end, the others at their beginning."""


def portable_xmp(name: str, packet: bytes | str | None) -> bytes | None:
    """A file's XMP as it stays true in another file; None, with a warning in the log, if it is damaged.

    Args:
        name: of the file, for the warning.
        packet: XMP, with or without its `xpacket` wrapper.
    """
    if not packet:
        return None
    try:
        document = _parse(packet.encode() if isinstance(packet, str) else packet)
        for namespace, field in _UNTRUE:
            _remove(document, namespace, field)
        return _serialise(document)
    except Exception as error:  # a photo is worth more than its XMP
        log.warning("%s: its XMP is damaged (%s) and dropped", name, excerpt(error))
        return None


def with_provenance(packet: bytes | None, action: str) -> bytes:
    """XMP that names ipt-triton as xmp:CreatorTool, with one more event in xmpMM:History.

    Args:
        packet: what `portable_xmp` gave, or None.
        action: what was done, such as a task's name; goes into the event's stEvt:parameters.
    """
    tool = f"{_AGENT} {installed_version()}"
    document = _parse(packet or _EMPTY)
    _remove(document, XMP, "CreatorTool")
    tree = document.getElementsByTagNameNS(RDF, "RDF")[0]
    about = _add(document, tree, RDF, "rdf:Description", xmlns_rdf=RDF)
    about.setAttributeNS(RDF, "rdf:about", "")
    _add(document, about, XMP, "xmp:CreatorTool", xmlns_xmp=XMP).appendChild(document.createTextNode(tool))
    event = _add(document, _history(document, about), RDF, "rdf:li", xmlns_rdf=RDF, xmlns_stEvt=EVENT)
    event.setAttributeNS(RDF, "rdf:parseType", "Resource")
    # No time: the same photo restored again shall be the same bytes.
    values = {"action": "processed", "softwareAgent": tool, "parameters": action}
    for key, value in values.items():
        if value:
            _add(document, event, EVENT, f"stEvt:{key}").appendChild(document.createTextNode(value))
    return _serialise(document)


def recorded_action(path: Path) -> str | None:
    """The `action` of the last provenance in a file; None if there is none, or not where our files have it.

    It reads some hundred kilobytes and decodes nothing, so that a million files are looked at.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_HEAD_BYTES)
        if len(data) == _HEAD_BYTES:
            file.seek(max(_HEAD_BYTES, file.seek(0, 2) - _TAIL_BYTES))
            data += file.read()
    action = _OUR_ACTION.match(data, max(0, data.rfind(_OURS)))
    return unescape(action[1].decode(errors="replace")) if action else None


def _history(document: minidom.Document, about: minidom.Element) -> minidom.Element:
    """The list of events, made below `about` if there is none."""
    for history in document.getElementsByTagNameNS(MEDIA, "History"):
        for found in history.getElementsByTagNameNS(RDF, "Seq"):
            return found
    history = _add(document, about, MEDIA, "xmpMM:History", xmlns_xmpMM=MEDIA)
    return _add(document, history, RDF, "rdf:Seq", xmlns_rdf=RDF)


def _parse(packet: bytes) -> minidom.Document:
    """
    Raises:
        ValueError, ExpatError: no XML, no RDF in it, or entities, which XMP has no need of and bombs are made of.
    """
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise ValueError("it declares a document type")
    document = minidom.parseString(packet.strip(b"\0 \t\r\n"))
    if not document.getElementsByTagNameNS(RDF, "RDF"):
        raise ValueError("it holds no rdf:RDF")
    return document


def _elements(document: minidom.Document) -> Iterator[minidom.Element]:
    yield from list(document.getElementsByTagName("*"))


def _remove(document: minidom.Document, namespace: str, name: str) -> None:
    """Remove a property, which may be an attribute or an element."""
    for element in _elements(document):
        if element.hasAttributeNS(namespace, name):
            element.removeAttributeNS(namespace, name)
        if (element.namespaceURI, element.localName) == (namespace, name) and element.parentNode:
            element.parentNode.removeChild(element)


def _add(
    document: minidom.Document, parent: minidom.Element, namespace: str, name: str, **prefixes: str
) -> minidom.Element:
    """A new element below `parent`; prefixes, such as xmlns_rdf, are declared on it."""
    element = document.createElementNS(namespace, name)
    for prefix, uri in prefixes.items():
        element.setAttribute(prefix.replace("_", ":", 1), uri)
    parent.appendChild(element)
    return element


def _serialise(document: minidom.Document) -> bytes:
    root = document.documentElement
    assert root is not None
    return (_BEGIN + root.toxml() + _END).encode()
