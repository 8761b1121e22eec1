"""The page `/docs`: the OpenAPI description as HTML, without scripts and without anybody else's files."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: the HTTP API</title><link rel="stylesheet" href="/docs.css">
<main><h1>{title} {version}</h1>{description}
<p>The machine-readable description is <a href="/openapi.json">openapi.json</a>. Every error is a problem JSON
(RFC 9457), whose <code>detail</code> is one sentence.</p>
{operations}
</main></html>
"""

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; }
main { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem; }
h2 code { font-weight: 700; }
pre, code { font-family: ui-monospace, monospace; font-size: .92em; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; }
th { border-bottom: 1px solid color-mix(in srgb, currentColor 40%, transparent); }
"""


def reference_page(description: dict[str, Any]) -> str:
    """The page for an OpenAPI description."""
    info = description["info"]
    operations = [
        _operation(method, path, operation, description["components"]["schemas"])
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=_prose(info["description"]),
        operations="\n".join(operations),
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</h2>"]
    parts.append(_prose(operation.get("description", "")))
    form = schemas["PhotoForm"] if "requestBody" in operation else {"properties": {}}
    rows = [(name, form["properties"][name], "form") for name in form.get("required", ())]
    where = "form or query" if rows else "query"
    rows += [
        (p["name"], {**p["schema"], "description": p.get("description", "")}, where if p["in"] == "query" else p["in"])
        for p in operation.get("parameters", [])
    ]
    if rows:
        cells = (
            f"<tr><td><code>{escape(name)}</code><td>{place}<td>{escape(_kind(schema))}"
            f"<td>{_words(schema.get('description') or '')}"
            for name, schema, place in rows
        )
        parts.append(f"<table><tr><th>name<th>in<th>type<th>{''.join(cells)}</table>")
    answers = ", ".join(
        f"{status} {escape(answer['description'].rstrip('.'))}" for status, answer in operation["responses"].items()
    )
    return "\n".join([*parts, f"<p>Answers: {answers}.</p>"])


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    words = []
    for kind in kinds:
        word = (
            " or ".join(map(json.dumps, kind["enum"])) if "enum" in kind else str(kind.get("format", kind.get("type")))
        )
        low, high = kind.get("minimum", kind.get("exclusiveMinimum")), kind.get("maximum")
        words.append(word if low is None else f"{word}, {low} to {high}")
    return " or ".join(words)


def _prose(text: str) -> str:
    """Paragraphs, and what is indented as code."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    return "".join(
        f"<pre>{escape(part.strip())}</pre>" if part.startswith("    ") else f"<p>{_words(part)}</p>"
        for part in paragraphs
    )


def _words(text: str) -> str:
    """A line of text; what is between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.strip()))
