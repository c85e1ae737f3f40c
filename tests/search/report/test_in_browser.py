"""The report and the comparison in headless Chromium: keyboard, narrow and dark, reading again, copying, axe-core.

They need a Chromium, and the rules of accessibility need axe-core: its file is named by the environment variable
AXE_CORE, or lies in `node_modules` of the repository (`npm install axe-core`). Where BROWSER_TESTS=required, a missing
one fails.
"""

import os
import shutil
from pathlib import Path

import made_databases
import made_studies
import pytest
from playwright import sync_api as playwright

from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.driver.phases import PROPOSING, PhaseState
from skipsearch.search.report.compare.comparison import compare_studies
from skipsearch.search.report.compare.page import write_comparison
from skipsearch.search.report.html.live import LiveState, WorkerJob
from skipsearch.search.report.html.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(os.environ.get("AXE_CORE") or Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js")
PATIENCE = 120_000  # milliseconds
SELECTED = "[...document.querySelectorAll('.selected')].map(one => one.id || one.dataset.name)"


def refuse_missing(what):
    """Skip a test, or fail it where everything is to run."""
    (pytest.fail if os.environ.get("BROWSER_TESTS") == "required" else pytest.skip)(what)


@pytest.fixture(scope="module")
def axe():
    """The rules of accessibility, as a script."""
    if not AXE.is_file():
        refuse_missing(f"axe-core is not installed: there is no {AXE}")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        refuse_missing("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By name, a finished report, one of a search that runs, ones with a gap and with trainings, and a comparison."""
    folder = tmp_path_factory.mktemp("results")
    study = made_databases.made_study(folder / "all", {"search.start": "rules"})
    other = made_databases.made_study(folder / "few", {"search.trials": "8"})
    write_page(read_record(study), study)
    write_live(study, folder, 3)
    write_comparison(compare_studies([study, other]), folder / "compare.html")
    for name, record in (("gap", made_studies.with_gap), ("trained", made_studies.trained)):
        (folder / name).mkdir()
        write_page(record(made_studies.study()), folder / name)
    reports = {"report": study, "live": folder, "gap": folder / "gap", "trained": folder / "trained"}
    return {name: one / "report.html" for name, one in reports.items()} | {"compare": folder / "compare.html"}


def write_live(study, folder, done):
    policy = Policy.model_validate({"layers": {2: {"ffn": "skip"}}})
    job = WorkerJob("worker-0", 3, policy, ("accuracy",), "search", 12.0)
    record = read_record(study)
    documents = {number: record.trial(number).policy.to_yaml() for number in record.front}
    write_page(record, folder, LiveState(PhaseState(PROPOSING, done, 14, 90.0), [job], ["a note"], documents))


def opened(browser, file, width=1000, scheme="light"):
    """The page, and what its console says."""
    page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector(".point[tabindex='0']", state="attached")
    return page, said


PAGES = ["report", "live", "gap", "trained", "compare"]


@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_dark_page_fits_and_has_no_errors(browser, files, name) -> None:
    page, said = opened(browser, files[name], 360, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert said == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_the_rules_of_accessibility(axe, browser, files, name, scheme) -> None:
    page, _ = opened(browser, files[name], 1000 if scheme == "light" else 360, scheme)
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(result => result.violations)")
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    page.close()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_the_keyboard_reaches_every_policy_and_enter_leads_to_its_row_and_its_map(browser, files, name) -> None:
    page, said = opened(browser, files[name])
    for plot in page.query_selector_all(".js-plotly-plot:has(.point[role=link])"):
        drawn = {one.get_attribute("data-name") for one in plot.query_selector_all(".point[role=link]")}
        assert drawn >= {one.get_attribute("id").removeprefix("map-") for one in page.query_selector_all("[id^=map-]")}
        plot.query_selector(".point[tabindex='0']").focus()
        page.keyboard.press("Home")
        reached = set()
        for _ in plot.query_selector_all(".point[role]"):
            reached.add(page.evaluate("document.activeElement.dataset.name"))
            page.keyboard.press("ArrowRight")
        assert drawn <= reached
        assert len(plot.query_selector_all(".point[tabindex='0']")) == 1
    page.keyboard.press("Home")
    point = page.evaluate("document.activeElement.dataset.name")
    assert page.evaluate("document.querySelectorAll('.hoverlayer .hovertext').length") > 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == f"#trial-{point}"
    assert {f"trial-{point}", f"map-{point}", point} <= {*page.evaluate(SELECTED)}
    assert page.evaluate(f"document.getElementById('trial-{point}').contains(document.activeElement)")
    assert said == []
    page.close()


def test_a_click_on_a_policy_leads_to_its_row(browser, files) -> None:
    page, _ = opened(browser, files["report"])
    place = page.locator("#plane-0 .point[role=link]").first
    name = place.get_attribute("data-name")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext", state="attached")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("location.hash")
    assert page.evaluate("location.hash") == f"#trial-{name}"
    page.close()


@pytest.mark.parametrize("clipboard", [True, False])
def test_commands_are_copied_from_a_file_with_and_without_a_clipboard(browser, files, clipboard) -> None:
    page, said = opened(browser, files["report"])
    if not clipboard:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("addEventListener('copy', () => { window.copied = getSelection().toString(); })")
    button = page.locator("button[data-copy^=shell]").first
    button.click()
    page.wait_for_function("document.getElementById('said').textContent")
    assert button.text_content() in ("copied", "press Ctrl+C")
    if not clipboard:
        command = page.locator("code[id^=shell]").first.text_content()
        assert page.evaluate("window.copied || getSelection().toString()") == command
    assert said == []
    page.close()


def test_a_page_that_is_read_again_keeps_place_selection_focus_details_and_zoom(browser, files) -> None:
    folder, study = files["live"].parent, files["report"].parent
    page, said = opened(browser, files["live"])
    page.evaluate("document.getElementById('notes').open = true")
    page.evaluate("Plotly.relayout('plane-0', {'xaxis.range': [50, 90], 'yaxis.range': [20, 90]})")
    name = page.locator("[id^=map-]").last.get_attribute("id").removeprefix("map-")
    page.evaluate(f"location.hash = 'trial-{name}'")
    page.evaluate(f"document.querySelector('#trial-{name} summary').focus()")
    page.evaluate("scrollBy(0, -200)")
    at = f"Math.round(document.getElementById('trial-{name}').getBoundingClientRect().top)"
    before = page.evaluate(at)
    write_live(study, folder, 9)
    page.evaluate("reloadWhenDue()")
    page.wait_for_selector("progress[value='9']")
    page.wait_for_function(f"Math.abs({at} - {before}) <= 2")
    assert {f"trial-{name}", f"map-{name}"} <= {*page.evaluate(SELECTED)}
    assert page.evaluate("document.activeElement.closest('tbody')?.id") == f"trial-{name}"
    assert page.evaluate("document.getElementById('notes').open")
    assert page.evaluate("document.getElementById('plane-0').layout.xaxis.range") == [50, 90]
    page.locator("#refresh").uncheck()
    page.evaluate("reloadWhenDue()")  # does nothing now
    write_page(read_record(study), folder)
    page.reload()
    page.wait_for_selector(".point[tabindex='0']", state="attached")
    assert page.locator("#refresh").count() == 0 and said == []
    page.close()
