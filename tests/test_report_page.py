"""The report's page: one file, nothing from outside, everything in it; seen by Chromium where there is one."""

import base64
import html
import re
import shutil
import subprocess

import pytest
from PIL import Image

from tests.report_runs import write, write_spaces
from utilities.report.__main__ import main

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    for seed in (0, 1, 2):
        folder = write(place / "runs", "proxyanchor", seed, [0.1, 0.39 + 0.01 * seed])
        write(place / "runs", "antico_batch_proxy", seed, [0.1, 0.52 + 0.011 * seed], "--project", NASTY)
    write(place / "runs", "multisimilarity", 0, [0.1], "--group", "<b>&", epochs=1)
    write_spaces(folder, 20)
    Image.new("RGB", (40, 30), "red").save(f"{folder}/panel.png")
    Image.new("RGB", (40, 30), "blue").save(f"{folder}/mine.png")  # which nobody asked for
    with open(f"{folder}/spectrum.png", "w") as file:
        file.write("text")
    assert main([place / "runs", "--out", place / "t", "--html", place / "named.html"]) == 0
    return place


def test_the_page_is_one_file_with_all_of_it(page):
    text = (page / "named.html").read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]*)""", text)
    assert addresses and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)  # no file, script or type from elsewhere
    pictures = [base64.b64decode(address.partition(",")[2]) for address in addresses]
    written = {path.read_bytes() for path in page.glob("t*.png")}
    assert written <= set(pictures) and len(pictures) == len(written) + 1  # a run's panel.png
    assert "panel.png" in text and "mine.png" not in text and "spectrum.png" not in text
    for words in ("AntiCo batch_proxy over ProxyAnchor", "53.1 ± 1.1", "Left out of the means: 1 of 7 runs",
                  "python main.py --resume", "<dt>loss_oproxy_lrmulti</dt><dd>3</dd>", "<strong>+13.1 ["):  # fmt: skip
        assert words in text
    assert text.count("<details>") == 7 + 1 and text.count('class="sortable"') == 2  # the runs, and the page's command


def test_the_page_escapes_what_runs_are_called(page):
    text = (page / "named.html").read_text(encoding="utf-8")
    assert NASTY not in text and "<b>" not in text
    assert html.escape("<b>&_multisimilarity_s0") in text


def chromium(*words):
    name = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not name:
        pytest.skip("no Chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    done = subprocess.run([name, *flags, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_chromium_sorts_and_fits_a_phone(page):
    """In a frame of a phone's width nothing but a table's own scrolling box is wider than it; a click sorts."""
    script = """<iframe id=f src=named.html width=390 height=800></iframe><script>
    f.onload = () => {
      const page = f.contentDocument, table = page.querySelector("table"), heads = table.querySelectorAll("button");
      const column = n => [...table.tBodies[0].rows].map(row => row.cells[n].textContent);
      const found = {wide: page.documentElement.scrollWidth};
      heads[2].click(); found.falling = column(2);
      heads[2].click(); found.rising = column(2);
      heads[0].click(); found.words = column(0);
      document.title = JSON.stringify(found);
    };
    </script>"""
    (page / "frame.html").write_text(script)
    shown = chromium("--virtual-time-budget=20000", "--dump-dom", f"file://{page}/frame.html")
    title = html.unescape(re.search("<title>(.*?)</title>", shown)[1])
    assert '"wide":390' in title or '"wide":375' in title  # a scroll bar takes some
    assert '"falling":["53.1 ± 1.1","40.0 ± 1.0","-"]' in title
    assert '"rising":["40.0 ± 1.0","53.1 ± 1.1","-"]' in title
    assert title.index('"AntiCo batch') < title.index('"MultiSimilarity"') < title.index('"ProxyAnchor"')


@pytest.mark.parametrize("size", ["1280,2000", "500,2000"])
def test_chromium_draws_the_page(page, size):
    picture = page / f"{size}.png"
    chromium(f"--screenshot={picture}", f"--window-size={size}", f"file://{page}/named.html")
    with Image.open(picture) as image:
        assert image.size == tuple(map(int, size.split(","))) and len(image.convert("L").getcolors()) > 50
