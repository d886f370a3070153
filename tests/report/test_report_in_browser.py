"""The report as a browser shows it: nothing fetched, nothing logged, nothing cut, nothing run."""

from __future__ import annotations

import json
import shutil

import pytest
from report_samples import results, retrieval, rich, several, with_classes

from everlearn import report

PAGES = {
    "one": lambda: report.render([results()]),
    "rich": lambda: report.render([rich()]),
    "retrieval": lambda: report.render([retrieval()]),
    "twenty": lambda: report.render([results(20)]),
    "several": lambda: report.render(several(), "Take ranpac."),
    "classes": lambda: report.render([with_classes(results(12, classes=1))]),
}
FIGURES = {
    "one": ["matrix", "curve", "old-new", "then-now", "seconds", "stored", "seconds-per-task"],
    "retrieval": ["matrix", "matrix-recall", "matrix-mrr", "curve", "old-new", "then-now", "seconds"],
    "several": ["pareto", "pareto-close", "curves"],
    "classes": ["matrix", "confusion"],
}
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.get("about:blank")  # the browser's own first page is past before any log is read
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {name: report.write_page(make(), folder / f"{name}.html").as_uri() for name, make in PAGES.items()}


def show(browser, address: str, width: int = 1280, media: str = "screen") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    browser.get(address)


@pytest.mark.parametrize("name", PAGES)
def test_fetches_nothing_and_logs_nothing(browser, pages, name):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, pages[name])
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert pages[name] in asked
    assert [url for url in asked if url != pages[name] and not url.startswith("data:")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_there_and_not_empty(browser, pages, name):
    show(browser, pages[name])
    for figure in FIGURES[name]:
        box = browser.execute_script(
            "const f = document.getElementById('fig-' + arguments[0]);"
            "if (!f) return null;"
            "const d = f.querySelector('svg.chart, svg.bar, table').getBoundingClientRect();"
            "return [d.width, d.height, f.querySelectorAll('path, rect, circle, td[class]').length]",
            figure,
        )
        assert box is not None, f"no figure {figure}"
        assert box[0] > 80 and box[1] >= 20 and box[2] >= 1, (figure, box)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_no_sideways_scroll_and_no_label_cut(browser, pages, name, width):
    show(browser, pages[name], width)
    wide = browser.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = true);return document.documentElement.scrollWidth"
    )
    assert wide <= width
    cut = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart text')].filter(t => {"
        "const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();"
        "return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 2 || a.top < b.top - 2"
        "}).map(t => t.textContent)"
    )
    assert cut == []


def test_a_phone_shows_the_whole_matrix(browser, pages):
    for name in ("one", "rich", "retrieval", "classes"):
        show(browser, pages[name], 390)
        sizes = "const s = document.querySelector('#fig-matrix .scroll'); return [s.scrollWidth, s.clientWidth]"
        wide, box = browser.execute_script(sizes)
        assert wide <= box, name


def test_a_matrix_too_wide_for_a_phone_keeps_its_last_column_in_sight(browser, pages):
    show(browser, pages["twenty"], 390)
    for scrolled in (0, 1000):
        edges = browser.execute_script(
            "const s = document.querySelector('#fig-matrix .scroll'); s.scrollLeft = arguments[0];"
            "const box = s.getBoundingClientRect();"
            "return [...s.querySelectorAll('.all')].map(cell => cell.getBoundingClientRect())"
            ".map(cell => [cell.left - box.left, box.right - cell.right])",
            scrolled,
        )
        assert edges and all(left > 0 and right >= -1 for left, right in edges), edges[:3]


@pytest.mark.parametrize("name", ["one", "twenty", "several", "classes"])
def test_print_cuts_nothing(browser, pages, name):
    show(browser, pages[name], 688, media="print")  # A4 without its margins
    cut = browser.execute_script(
        "return [...document.querySelectorAll('table, svg, pre')].map(e => e.getBoundingClientRect().right)"
    )
    assert max(cut) <= 689
    shown = "return getComputedStyle(document.querySelector('figure')).breakInside"
    assert browser.execute_script(shown) == "avoid"


def test_text_of_others_is_shown_and_not_run(browser, pages):
    show(browser, pages["rich"])
    assert browser.title.startswith("ranpac on my <script>")
    assert browser.execute_script("return document.scripts.length + document.images.length") == 0
    names = browser.execute_script("return [...document.querySelectorAll('.classes li')].map(x => x.textContent)")
    assert '<script>document.title = "owned"</script>' in names


@pytest.mark.parametrize("name", PAGES)
def test_can_be_navigated_by_ear_and_keyboard(browser, pages, name):
    show(browser, pages[name])
    missing = browser.execute_script(
        "const bad = [];"
        "if (document.documentElement.lang !== 'en') bad.push('lang');"
        "for (const t of ['header', 'main', 'footer', 'h1', 'head > title', 'meta[name=viewport]'])"
        "  if (document.querySelectorAll(t).length !== 1) bad.push(t);"
        "document.querySelectorAll('svg').forEach(s => {"
        "  if (!s.getAttribute('aria-label') && s.getAttribute('aria-hidden') !== 'true') bad.push('svg') });"
        "document.querySelectorAll('.scroll').forEach(s => {"
        "  if (!s.getAttribute('aria-label') || s.tabIndex !== 0) bad.push('scroll') });"
        "document.querySelectorAll('section').forEach(s => {"
        "  if (!document.getElementById(s.getAttribute('aria-labelledby'))) bad.push('section') });"
        "const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        "if (new Set(ids).size !== ids.length) bad.push('ids');"
        "return bad"
    )
    assert missing == []
