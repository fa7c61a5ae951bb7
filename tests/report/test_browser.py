"""The page in a real browser: no error in the console, no accessibility finding, no sideways scrolling, working links.

Needs Chromium with its driver, selenium and axe-core-python (the extra `browser`); skips, saying which is missing.
"""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

import pytest
import yaml

selenium = pytest.importorskip("selenium", reason="the browser tests need: pip install 'semalign[browser]'")
pytest.importorskip("axe_core_python", reason="the browser tests need: pip install 'semalign[browser]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

from semalign.report import build_comparison, build_report  # noqa: E402
from semalign.run.files import write_yaml  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver"),
    pytest.mark.filterwarnings("ignore"),
]
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
ACROSS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
SIZES = [(width, scheme) for width in (360, 1440) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def full_page(make_run) -> Path:
    """The report of a run folder with every file."""
    return build_report(make_run())


def show(browser, page: Path, width: int, scheme: str) -> None:
    """Open a page on a screen of that width, light or dark."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())


def findings(browser) -> list[str]:
    """What axe-core finds that is serious or critical: rule, and the first element."""
    script = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(script)
    result = browser.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run(document).then(done, e => done({error: String(e)}));"
    )
    assert "error" not in result, result
    assert result["passes"], "axe-core found nothing to check"
    return [
        f"{v['id']}: {v['help']} ({v['nodes'][0]['html'][:120]})"
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_report_is_accessible_and_fits(browser, full_page, width, scheme):
    show(browser, full_page, width, scheme)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    assert findings(browser) == []
    wide, seen = browser.execute_script(ACROSS)
    assert wide <= seen
    links = [a.get_attribute("href") for a in browser.find_elements(By.CSS_SELECTOR, "a[href]")]
    for link in links:
        target = link.split("#", 1)[1]
        assert link.startswith(full_page.as_uri()) and browser.find_elements(By.ID, target), link


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_several_runs_on_a_page_are_accessible_and_fit(browser, make_run, tmp_path, width, scheme):
    first, second = make_run(), tmp_path / "second"
    shutil.copytree(first, second)
    config = (second / "config.yaml").read_text().replace("num_layers: 2", "num_layers: 3")
    write_yaml(second / "config.yaml", yaml.safe_load(config))
    show(browser, build_comparison([first, second], tmp_path / "runs.html"), width, scheme)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    assert findings(browser) == []
    wide, seen = browser.execute_script(ACROSS)
    assert wide <= seen


def test_axe_would_find_a_fault(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<html><body><img src='x.png'><p style='color:#ccc;background:#fff'>pale</p></body></html>"
    )
    show(browser, page, 1440, "light")
    assert any("image-alt" in f for f in findings(browser)) and any(
        "contrast" in f for f in findings(browser)
    )
