"""What mkdocs calls: it adds the generated pages, and makes links to files of the repository work in the site.

The same Markdown is read on a code host, where ``../src/untied/tape/tape.py`` is a file. In the site that file is a
page of its own under source/, and results/ is a part of the site. A link to a file that does not exist stays as it
is, so that mkdocs reports it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pages import api, generated

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".cff": "yaml", ".html": "html"}


def in_repository(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return page if page.startswith("results/") else f"docs/{page}"


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("results/") and (ROOT / path).is_file():
        return path
    return f"source/{path}.md" if (ROOT / path).is_file() else f"source/{path}/index.md"


def target(page: str, link: str) -> str | None:
    """The file of the repository that a link on a page means; None if there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def source_page(path: str) -> str:
    """A page that shows a file, or lists a folder."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in file.iterdir() if not p.name.startswith(("_", ".")))
        return f"# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":  # shown as it is written, since its links count from another place
        return f"# {path}\n\n~~~~~~text\n{text}\n~~~~~~\n"
    return f"# {path}\n\n~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{text}\n~~~~~~\n"


def on_config(config: Any) -> Any:
    """The pages of the API stand in the navigation in the order in which the code lists them."""
    for section in config["nav"]:
        for item in section.get("Reference", []):
            if isinstance(item, dict) and "API" in item:
                item["API"] = list(api())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, the results, and a page for each file that some page links to."""
    for place, text in generated().items():
        files.append(File.generated(config, place, content=text))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.name == "README.md" or path.suffix in (".png", ".svg"):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    linked = {
        path
        for file in files.documentation_pages()
        for link in LINK.findall(file.content_string)
        if (path := target(file.src_uri, link))
    }
    for path in sorted(linked):
        if files.get_file_from_path(in_site(path)) is None:
            if in_site(path).startswith("source/"):
                files.append(File.generated(config, in_site(path), content=source_page(path)))
            else:  # data beside a result
                files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point each link into the repository at its page of the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown

    def moved(found: re.Match[str]) -> str:
        path = target(here, found["path"])
        return found["path"] if path is None else os.path.relpath(in_site(path), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)
