"""The report in a real browser: headless Chromium, from disk, at the widths of a desk and of a phone.

Chromium and its driver are the system's (Debian: `apt-get install chromium-driver`); without them the tests skip.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm_eval_edit.plots import figures
from lm_eval_edit.report import write_report
from lm_eval_edit.sweep.reading import load_sweep
from tests.support.browser import open_chromium
from tests.support.results_files import sample
from tests.support.sweep_folders import write_cells

pytestmark = pytest.mark.slow

WIDTHS = {"desk": 1280, "phone": 390, "small phone": 320}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 400"><title>x</title><image href="http://127.0.0.1:9/a.png"/>'
    '<script>window.top.ran = 1</script><path d="M0 0L900 400" stroke="black"/></svg>'
)


@pytest.fixture(scope="module")
def browser():
    chromium = open_chromium()
    yield chromium
    chromium.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of a sweep with long prompts, hostile answers, wide tables and pictures."""
    folder = tmp_path_factory.mktemp("report")
    tasks = [f"edithurt_task_with_a_long_name_{i}" for i in range(9)]

    def samples(wrong: int) -> list[dict]:
        lines = []
        for i in range(4):
            answer = "W" * 500 if i < wrong else "right"
            answer = '<script>window.ran = 1</script><img src="http://127.0.0.1:9/b.png">' if i == wrong - 1 else answer
            lines.append(sample(i, {"acc": int(i >= wrong)}, prompt=f"{'word ' * 200} Question {i}?", answer=answer))
        return lines

    cells = {n: {task: samples(wrong) for task in tasks} for n, wrong in ((0, 0), (5, 1), (10, 3))}
    root = write_cells(folder / "a_sweep_with_a_rather_long_name_that_nobody_can_break", cells | {20: "collapsed"})
    picture = SimpleNamespace(name="x", title="A picture", alt="A line that falls", svg=SVG)
    sweep = load_sweep(root)
    write_report(sweep, folder / "report.html", [picture, *figures(sweep, metric="acc")])
    return folder / "report.html"


def open_page(browser, file: Path, width: int = 1280, *, dark: bool = False) -> None:
    """Open a file from disk, at a width, with empty logs."""
    phone = width < 600
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone},
    )
    wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    for log in ("performance", "browser"):
        browser.get_log(log)
    browser.get(file.as_uri())


def asked(browser) -> list[str]:
    """The addresses that were asked for since the page was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def open_folds(browser) -> None:
    browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_fetched_and_nothing_complains(browser, report, width):
    open_page(browser, report, width)
    open_folds(browser)
    browser.execute_script("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert asked(browser) == [report.as_uri()]
    assert browser.get_log("browser") == [], "no error, no breach of the policy"
    assert browser.execute_script("return window.ran === undefined"), "no script of a model or a picture ran"
    drawn = "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
    assert browser.execute_script(drawn).count(True) == browser.execute_script("return document.images.length") > 1


def test_a_fetch_would_have_been_seen(browser, report, tmp_path):
    """The checks above fail where there is something to fetch: a breach of the policy is told, or a request seen."""
    image = '<img src="http://127.0.0.1:9/c.png" alt="">'
    source = report.read_text().replace("<main", image + "<main")
    (tmp_path / "with.html").write_text(source)
    open_page(browser, tmp_path / "with.html")
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
    (tmp_path / "without.html").write_text(source.replace("Content-Security-Policy", "X"))
    open_page(browser, tmp_path / "without.html")
    assert "http://127.0.0.1:9/c.png" in asked(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_is_never_wider_than_the_window(browser, report, width, dark):
    open_page(browser, report, width, dark=dark)
    beyond = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script("return window.innerWidth") == width and browser.execute_script(beyond) == 0
    open_folds(browser)
    assert browser.execute_script("return window.innerWidth") == width and browser.execute_script(beyond) == 0
    wider = "return [...document.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth).length"
    assert browser.execute_script(wider) > 0, "what is wider scrolls in a container of its own"


@pytest.mark.parametrize("width", [1280, 390])
def test_links_lead_somewhere(browser, report, width):
    open_page(browser, report, width)
    links = browser.find_elements("css selector", "a")
    assert len(links) >= 7
    for link in links[1:]:  # the first skips to the content; it is tried by keyboard below
        target = link.get_dom_attribute("href")
        link.click()
        assert browser.execute_script("return location.hash") == target
        at = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
        assert -5 < browser.execute_script(at, target) < 800


def test_every_fold_opens_by_click(browser, report):
    open_page(browser, report, 390)
    folds = browser.find_elements("css selector", "details")
    assert len(folds) > 20 and len(browser.find_elements("css selector", "details details")) > 10
    for fold in folds:  # in the order of the page: an outer one before those within
        assert fold.get_dom_attribute("open") is None
        fold.find_element("tag name", "summary").click()
        assert fold.get_dom_attribute("open") is not None


def test_every_fold_and_link_by_keyboard(browser, report):
    """By the tabulator alone one comes by every link, button, fold and scrolled table; Enter opens each fold."""
    from selenium.webdriver.common.keys import Keys

    open_page(browser, report)
    total = browser.execute_script("return document.querySelectorAll('a, button, summary, .scroll').length")
    seen = 0
    for _ in range(total + 5):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        here = browser.switch_to.active_element
        if here.tag_name == "body":
            break
        seen += 1
        outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", here)
        assert outline == "solid", f"one sees where one is: <{here.tag_name}>"
        if seen == 1:
            assert here.get_dom_attribute("class") == "skip" and here.rect["x"] >= 0
        if here.tag_name == "summary":
            here.send_keys(Keys.ENTER)
    assert seen == total, "each once, those inside the folds too"
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0


def test_skip_link_and_buttons(browser, report):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, report)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "content"
    button = browser.find_element("css selector", "#broken button")
    closed = "return document.querySelectorAll('#broken details.row:not([open])').length"
    assert button.text == "Open all" and browser.execute_script(closed) > 1
    button.send_keys(Keys.ENTER)
    assert button.text == "Close all" and browser.execute_script(closed) == 0


def test_works_without_scripts(browser, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, report)
        assert browser.find_elements("css selector", "#broken button") == []
        fold = browser.find_element("css selector", "#broken details")
        fold.find_element("tag name", "summary").click()
        assert fold.get_dom_attribute("open") is not None and "Question 0?" in fold.text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
