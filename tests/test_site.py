"""The site: built strictly from this tree, with nothing that a browser would fetch elsewhere, and no dead link."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lm_eval_edit
from lm_eval_edit import settings
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from tests.conftest import ROOT
from tests.support.browser import open_chromium

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(project: Path, into: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", into],
        cwd=project, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to: `loaded` by the browser itself, `links` that a reader may follow; and its `ids`."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical" and "href" in given:
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


# ----------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_a_browser_fetches_nothing_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for path in pages:
        for loaded in Page(path.read_text(encoding="utf-8")).loaded:
            assert "//" not in loaded, (path.name, loaded)
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [found for text in styles for found in re.findall(r"url\(['\"]?(?:https?:)?//", text)]


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site):
    """mkdocs checks the links of Markdown; this checks what became of them, of menus and of the reference."""
    read = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    lost = []
    for path, page in read.items():
        for link in [*page.links, *page.loaded]:
            target, _, anchor = link.partition("#")
            if "://" in link or link.startswith(("mailto:", "data:")) or path.name == "404.html":
                continue
            there = (path.parent / target).resolve() if target else path
            if there.is_dir():
                there /= "index.html"
            if not there.is_file() or (anchor and there in read and anchor not in read[there].ids | {"__top"}):
                lost.append((path.relative_to(site).as_posix(), link))
    assert not lost


@pytest.mark.slow
def test_the_reference_has_every_public_name(site):
    page = Page((site / "reference" / "python.html").read_text(encoding="utf-8"))
    where = {name: f"lm_eval_edit.{room}.{name}" for name, room in lm_eval_edit._WHERE.items()}
    assert set(where) == set(lm_eval_edit.__all__)
    assert not [name for name in where.values() if name not in page.ids]


@pytest.mark.slow
def test_the_reference_has_every_option_and_command(site):
    text = unescape((site / "reference" / "command_line.html").read_text(encoding="utf-8"))
    for name in settings.NAMES:
        assert f"<code>{name}</code>" in text
    names = ("check", "compare", "export", "ls", "plot", "report", "run", "stats", "sweep", "train", "validate")
    for name in (*names, "train mend"):
        assert f"<code>lm-eval-edit {name}</code>" in text and f"usage: lm-eval-edit {name}" in text


@pytest.mark.slow
def test_dead_links_and_pages_in_no_menu_end_the_build(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    for name in ("docs", "tasks", "examples", "benchmarks", "lm_eval_edit"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for path in [ROOT / "mkdocs.yml", *ROOT.glob("*.md")]:
        shutil.copy(path, project)
    with (project / "docs" / "tutorial.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](nowhere.md) [b](facts.md#no-such-heading) [c](../examples/no_such_file.py)\n")
    (project / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    with (project / "tasks" / "edithurt_suite" / "README.md").open("a", encoding="utf-8") as page:
        page.write("\n[d](../edithurt_nothing/README.md)\n")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0
    for told in ("nowhere.md", "no-such-heading", "no_such_file.py", "forgotten.md", "edithurt_nothing"):
        assert told in done.stderr, done.stderr


@pytest.fixture(scope="module")
def browser():
    chromium = open_chromium()
    yield chromium
    chromium.quit()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_a_desk_and_a_phone(site, browser, width):
    """From disk: nothing but what scrolls in itself is wider than the screen, pictures are there, no script fails."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    for page in ("index.html", "tutorial.html", "methods.html", "reference/python.html", "how-to/results.html"):
        browser.get((site / page).as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        assert browser.execute_script(broken) == [], page
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert severe == [], page
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        assert urls and not [url for url in urls if not url.startswith(("file:", "data:", "blob:"))], page


# ----------------------------------------------------------------------------------------------------------- the hooks


@pytest.mark.parametrize(
    "place, text, expected",
    [
        ("methods.md", "[a](../tasks/edithurt_suite/README.md)", "[a](tasks/edithurt_suite.md)"),
        ("tasks/edithurt_suite.md", "[a](../../docs/chat.md#b)", "[a](../chat.md#b)"),
        ("tasks/edithurt_suite.md", "[a](../edithurt_glue/README.md)", "[a](edithurt_glue.md)"),
        ("CONTRIBUTING.md", "[a](docs/facts.md) [b](CHANGELOG.md)", "[a](facts.md) [b](CHANGELOG.md)"),
        ("how-to/gate.md", "[a](../../examples/ci/gate.sh)", "[a](../files/examples/ci/gate.sh)"),
        ("how-to/gate.md", "[a](#b) [c](https://example.org/x.md)", "[a](#b) [c](https://example.org/x.md)"),
        ("how-to/gate.md", "[a](../../examples/none.sh)", "[a](../../examples/none.sh)"),  # the build tells it
        ("methods.md", "`[a](../CHANGELOG.md)`\n```\n[a](../CHANGELOG.md)\n```", None),  # code stays
    ],
)
def test_links_between_files_become_links_between_pages(hooks, place, text, expected):
    assert hooks.rewritten(text, place) == (text if expected is None else expected)


def test_every_page_outside_docs_is_there(hooks):
    assert all((ROOT / path).is_file() for path in hooks.pages())
    assert len(set(hooks.pages().values())) == len(hooks.pages())
    assert sum(path.startswith("tasks/") for path in hooks.pages()) == len(list(ROOT.glob("tasks/*/README.md")))


def test_commands_of_commands_are_on_the_page_with_their_options(hooks):
    text = hooks.command_line()
    assert text.index("## `lm-eval-edit train`") < text.index("### `lm-eval-edit train mend`")
    own = text.split("### `lm-eval-edit train mend`")[1].split("\n## ")[0]
    assert "usage: lm-eval-edit train mend" in own
    assert not [each.name for each in fields(MendTrainingSettings) if f"--{each.name} " not in own]
