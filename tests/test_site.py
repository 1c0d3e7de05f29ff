"""The documentation site builds without a warning, its pages are complete, and a browser shows them as they should be.

The build ends with an error where a link is dead, so it is the test of links too.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import itertools
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import untied

ROOT = Path(__file__).resolve().parent.parent
CITED = re.compile(r"([A-Z][A-Za-zø-]+(?: and [A-Z][a-z]+| et al\.?)),? \(?((?:19|20)\d\d)\b")
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Not with --quiet: mkdocs then counts no warnings, and nothing is strict."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", str(source), "--site-dir", str(out)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site needs the extra 'docs'")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_built(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), page
    for page in ("reference/rules", "reference/commands", "reference/shapes", "results/index", "reference/api/untied"):
        assert (site / f"{page}.html").is_file(), page
    assert (site / "source/src/untied/tape/tape.py.html").is_file()  # a page of architecture.md links to the file
    assert "shown as it is" not in (site / "architecture.html").read_text(encoding="utf-8")
    assert not re.search(r'href="[^"#]*\.(py|md)["#]', (site / "architecture.html").read_text(encoding="utf-8"))


def test_generated_pages_say_what_the_code_says(site: Path) -> None:
    rules = (site / "reference/rules.html").read_text(encoding="utf-8")
    for name in (*untied.rules.NAMED, *untied.primitives.KNOWN, *untied.schedules.SCHEDULES):
        assert f"<code>{name}</code>" in rules, name
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    from untied.lab.commands import NAMES

    for name in (*NAMES, "study worker", "neural convert"):
        assert f"untied {name}<" in commands, name
    assert "label_smoothing" in commands and "\x1b" not in commands
    api = (site / "reference/api/untied.html").read_text(encoding="utf-8")
    assert all(f'id="untied.{name}"' in api for name in ("untie_", "tie_", "record", "parameter_groups"))


def test_every_public_module_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs_site"))
    documented = importlib.import_module("pages").MODULES
    for name in untied.__all__:
        if type(getattr(untied, name)) is type(untied):
            assert getattr(untied, name).__name__ in documented
    known = {module.name for module in pkgutil.walk_packages(untied.__path__, "untied.")} | {"untied"}
    assert set(documented) <= known


def test_a_dead_link_ends_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra 'docs'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Page\n\n[gone](../src/untied/gone.py)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    kept = settings[settings.index("validation:") : settings.index("not_in_nav:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\n{kept}")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1 and "gone.py" in done.stderr + done.stdout


def test_every_cited_work_is_in_the_references() -> None:
    references = (ROOT / "docs/reference/references.md").read_text(encoding="utf-8")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    cited = {found for file in files for found in CITED.findall(" ".join(file.read_text(encoding="utf-8").split()))}
    assert len(cited) > 10
    for authors, year in cited:
        assert f"{authors.rstrip('.').replace(' et al', ' et al.')} {year}" in references, (authors, year)


# What a browser shows

FAULTS = """
const faults = [];
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
if (wide > 0) faults.push(`the page is ${wide} px too wide`);
function colour(text) {
  const n = text.match(/[0-9.]+/g).map(Number);
  const scale = text.startsWith('color(') ? 255 : 1;
  return [n[0] * scale, n[1] * scale, n[2] * scale, n.length > 3 ? n[3] : 1];
}
function over(top, below) {
  return [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
}
function luminance(c) {
  const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const c = colour(getComputedStyle(e).backgroundColor);
    layers.push(c);
    if (c[3] === 1) break;
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
}
const seen = new Set();
for (const element of document.querySelectorAll('.md-content *')) {
  const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join(' ').trim();
  const style = getComputedStyle(element);
  if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
  if (!element.getClientRects().length || element.closest('.headerlink')) continue;
  const below = ground(element);
  const ink = over(colour(style.color), below);
  const [a, b] = [luminance(ink), luminance(below)].sort((x, y) => y - x);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
  const ratio = (a + 0.05) / (b + 0.05);
  const kind = element.className + style.color;
  if (ratio < (large ? 3 : 4.5) && !seen.has(kind)) {
    seen.add(kind);
    faults.push(`contrast ${ratio.toFixed(2)} of ${element.tagName}.${element.className} "${text.slice(0, 30)}"`);
  }
}
return faults;
"""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *what: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="looking at pages needs the extra 'browser'")
    found, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    with suppress(Exception):
        opened.quit()


def pages(site: Path) -> list[str]:
    """Every page that somebody wrote or that the code generates; not the copies of files."""
    found = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    return [page for page in found if not page.startswith("source/") and page != "404.html"]


def test_pages_in_a_browser(browser: Any, site: Path, address: str, tmp_path: Path) -> None:
    """No page is wider than its window, every text has contrast (WCAG AA), and the console stays empty."""
    faults = []
    for page in pages(site):
        browser.get(f"{address}/{page}")
        # The theme's colours change over a quarter of a second, which would be measured half-way.
        browser.execute_script(
            "document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>')"
        )
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
            # The theme's own switch remembers its first answer for the whole visit: set what it would set.
            name = "default" if scheme == "light" else "slate"
            browser.execute_script("document.body.setAttribute('data-md-color-scheme', arguments[0])", name)
            found = browser.execute_script(FAULTS)
            faults += [f"{page} at {width} px, {scheme}: {fault}" for fault in found]
        faults += [f"{page}: {entry['message']}" for entry in browser.get_log("browser")]
        shot = tmp_path / f"{page.replace('/', '_')}.png"
        assert browser.save_screenshot(str(shot)) and shot.stat().st_size > 1000
    assert not faults, "\n".join(faults)
