"""Pages that lie outside docs/: mkdocs gets them at the path that they have in the repository.

Links are written as they work in the repository, `../benchmarks/results/README.md` or `docs/design.md`; in the site,
where docs/ is the root, they become `benchmarks/results/README.md` and `design.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/results/*.*",
    "weights/*/*.md",
    "deploy/*/*.conf",
    "examples/*.py",
)


def on_files(files: Files, config: Any) -> Files:
    for path in (path for pattern in PATTERNS for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return markdown.replace("](../", "](").replace("](docs/", "](") if "/" not in page.file.src_uri else markdown
