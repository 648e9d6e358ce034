# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, before a real server with a key: ``make page-check``.

Needs Chromium on the path, and the package ``playwright``, which ``make`` installs.
Prints what was shown and fails at the first thing that is not so; ``--screenshots
FOLDER`` keeps the pictures that ``docs/page.md`` has.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.server.client import user_message
from tests.server.process import running_server
from vllm_lladav.page.serving import FILES
from vllm_lladav.tiny import TRAINED

KEY = "page-secret"
SAMPLE = FILES / "samples" / "triangles.png"
WIDE, NARROW = {"width": 1180, "height": 900}, {"width": 360, "height": 740}
MIDDLE = {"width": 640, "height": 900}
FLAGS = ("--served-model-name", "lladav-tiny", "--prune-layer", "6")
FLAGS += ("--live-canvas", "on", "--api-key", KEY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    shots = parser.parse_args().screenshots
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("make page-check needs Chromium: install the package chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(TRAINED, Path(folder, "log"), *FLAGS) as server,
        sync_playwright() as playwright,
    ):
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for check in (
            check_key,
            check_exact,
            check_pruned,
            check_comparison,
            check_pictures,
            check_stop,
            check_keyboard,
            check_narrow_and_dark,
            check_snippets,
        ):
            with opened(browser, server.url) as page:
                said = check(page, server.url, shots)
            print(f"{check.__name__.removeprefix('check_')}: {said}", flush=True)
        browser.close()
    for path in shots.glob("*.png") if shots else ():
        with Image.open(path) as shot:
            shot.convert("RGB").quantize(128).save(path, optimize=True)


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page, which asks nobody else and breaks none of its own rules."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda r: r.url.startswith((url, "data:", "blob:")) or wrong.append(r.url),
    )
    # A missing key is an error of the network, and the only one that is expected.
    page.on(
        "console",
        lambda m: m.type == "error" and "401" not in m.text and wrong.append(m.text),
    )
    page.goto(f"{url}/lladav")
    expect(page.locator("#preview")).to_be_visible()
    yield page
    assert not wrong, wrong
    context.close()


def enter_key(page: Page) -> None:
    page.locator("summary", has_text="Settings").click()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").press("Tab")
    expect(page.locator("#model option")).to_have_text(["lladav-tiny"])


def ask(page: Page, mode: str, tokens: int = 32) -> None:
    enter_key(page)
    page.get_by_label("Canvas, in tokens").fill(str(tokens))
    page.get_by_label(mode).check()
    page.get_by_role("button", name="Ask").click()


def done(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Done.", timeout=60_000)
    assert page.locator(".error:visible").count() == 0


def unmasked(page: Page) -> Locator:
    return page.locator(".tokens .token:not(.mask)")


def answer_of(url: str, tokens: int = 32, **xargs: Any) -> str:
    """What the server answers when it is asked without the page."""
    body = {
        "model": "lladav-tiny",
        "messages": [user_message("Describe the picture.", SAMPLE)],
        "max_tokens": tokens,
        "temperature": 0,
        "vllm_xargs": xargs,
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{url}/v1/chat/completions"
    response = requests.post(url, json=body, headers=headers, timeout=60)
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def check_key(page: Page, url: str, shots: Path | None) -> str:
    """The page needs none, the server does."""
    expect(page.locator("#status")).to_contain_text("401")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".error:visible")).to_contain_text("401: Unauthorized")
    enter_key(page)
    page.get_by_role("button", name="Ask").click()
    done(page)
    return "refused without it, answered with it"


WATCH_MASKS = """() => {
    window.numbersOfMasks = [];
    const results = document.querySelector('#results');
    const count = () => {
        const number = results.querySelectorAll('.tokens .mask').length;
        if (number || window.numbersOfMasks.length) {
            window.numbersOfMasks.push(number);
        }
    };
    const what = { subtree: true, attributeFilter: ['class'] };
    new MutationObserver(count).observe(results, what);
}"""
"""Keeps how many masks there were at every change of them, from the first one on."""


def check_exact(page: Page, url: str, shots: Path | None) -> str:
    """Tokens appear out of order and end as the answer of the API."""
    page.evaluate(WATCH_MASKS)
    ask(page, "Exact", tokens=64)
    unmasked(page).nth(12).wait_for()
    if shots:
        page.set_viewport_size(MIDDLE)
        page.locator("#results").screenshot(path=shots / "running.png")
    done(page)
    assert page.locator(".tokens .token").count() == 64
    assert page.locator(".tokens .mask:not(.outside)").count() == 0
    answer = page.locator("output").inner_text()
    assert answer == answer_of(url, 64, prune_rate=0)
    numbers = page.evaluate("window.numbersOfMasks")
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 5, numbers
    assert page.locator("[data-figure=visual]").inner_text() == "192"
    levels = page.locator(".tokens .level-4").count()
    assert levels > 15, "the small model is sure of most"
    inside = page.locator(".tokens .token:not(.outside)").all_inner_texts()
    assert "".join(inside).split() == answer.split(), inside
    return f"{len(set(numbers))} states on the way to {answer!r}"


def dark_share(page: Page) -> float:
    """Of the drawn picture."""
    share: float = page.evaluate(
        """() => {
            const canvas = document.querySelector('.picture canvas');
            const pen = canvas.getContext('2d');
            const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
            let dark = 0;
            for (let i = 0; i < data.length; i += 4)
                dark += data[i] + data[i + 1] + data[i + 2] < 240;
            return dark / (data.length / 4);
        }"""
    )
    return share


def check_pruned(page: Page, url: str, shots: Path | None) -> str:
    """What was dropped is dark, in both views."""
    ask(page, "Pruned")
    done(page)
    expect(page.locator(".pruning")).to_have_text(
        "Step 1 left 96 of 192 visual tokens; the others are dark."
    )
    shares = {}
    for view in ("overview", "tiles"):
        page.locator(".picture select").select_option(view)
        shares[view] = dark_share(page)
        assert 0.2 < shares[view] < 0.8, shares
    if shots:
        page.set_viewport_size(MIDDLE)
        page.locator("#results").screenshot(path=shots / "pruned.png")
    assert page.locator("output").inner_text() == answer_of(url, prune_rate=0.5)
    return f"dark share of the picture: {shares}"


def check_comparison(page: Page, url: str, shots: Path | None) -> str:
    """Three modes, a row for each."""
    ask(page, "All three")
    done(page)
    rows = [row.split("\t") for row in page.locator("tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["Exact", "Fast", "Pruned"], rows
    steps = [int(row[1]) for row in rows]
    assert min(steps[0], steps[2]) > steps[1] > 0, rows
    assert [row[4] for row in rows] == ["192", "192", "96 of 192"], rows
    assert all(float(row[2]) > 0 for row in rows)
    if shots:
        top = page.locator("#results").bounding_box()
        end = page.locator("#comparison").bounding_box()
        assert top and end
        clip = {**top, "height": end["y"] + end["height"] - top["y"]}
        path = shots / "comparison.png"
        page.screenshot(path=path, full_page=True, clip=clip)
    return "; ".join(" ".join(row[:5]) for row in rows)


def check_pictures(page: Page, url: str, shots: Path | None) -> str:
    """A file of one's own, dropped or chosen; a sample; none at all."""
    own = FILES / "samples" / "stars.png"
    page.locator("#file").set_input_files(own)
    expect(page.locator("#preview")).to_have_attribute(
        "alt", "The chosen picture: stars.png"
    )
    page.evaluate(
        """async () => {
            const blob = await (await fetch('samples/crosses.png')).blob();
            const data = new DataTransfer();
            data.items.add(new File([blob], 'dropped.png', { type: 'image/png' }));
            const event = new DragEvent('drop', { dataTransfer: data, bubbles: true });
            document.querySelector('#drop').dispatchEvent(event);
        }"""
    )
    expect(page.locator("#preview")).to_have_attribute(
        "alt", "The chosen picture: dropped.png"
    )
    ask(page, "Exact")
    done(page)
    dropped = page.locator("output").inner_text()
    assert "cross" in dropped, dropped
    page.get_by_role("button", name="No picture").click()
    page.get_by_role("button", name="Ask").click()
    done(page)
    expect(page.locator(".picture")).to_be_hidden()
    return f"of the dropped one: {dropped!r}"


def check_stop(page: Page, url: str, shots: Path | None) -> str:
    """The server hears of it."""
    ask(page, "Exact", tokens=1024)
    unmasked(page).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    ended = (
        'lladav:requests_ended_total{model_name="lladav-tiny",outcome="aborted"} 1.0'
    )
    for _ in range(50):
        if ended in requests.get(f"{url}/metrics", timeout=10).text:
            return "the request was given up"
        page.wait_for_timeout(100)
    raise AssertionError("the request goes on")


def check_keyboard(page: Page, url: str, shots: Path | None) -> str:
    """From the first sample to an answer without a mouse."""
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name: str = page.evaluate(
            "document.activeElement.id || document.activeElement.dataset.sample"
            " || document.activeElement.name || document.activeElement.tagName"
        )
        reached.append(name)
        if name == "circle.png" or name == "SUMMARY" and reached.count("SUMMARY") == 1:
            page.keyboard.press("Enter")
        elif name == "key":
            page.keyboard.type(KEY)
        elif name == "submit":
            break
    expect(page.locator("#model option")).to_have_text(["lladav-tiny"])
    page.keyboard.press("Enter")
    done(page)
    expect(page.locator("#preview")).to_have_attribute(
        "alt", "The chosen picture: circle.png"
    )
    assert {"file", "question", "mode", "max-tokens", "model"} <= set(reached), reached
    return f"{len(reached)} stops; {page.locator('output').inner_text()!r}"


CONTRASTS = """() => {
    const pen = document.createElement('canvas').getContext('2d');
    const bright = (colour) => {
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const parts = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        const [r, g, b] = parts.map((v) => v / 255).map(
            (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = document.querySelectorAll(
        'h1, header p, label, button, .token, .legend, dt, dd, output, .pruning');
    const ratios = [...texts].filter((e) => e.checkVisibility()).map((element) => {
        let behind = element;
        const paper = () => getComputedStyle(behind).backgroundColor;
        while (/, 0\\)$|transparent/.test(paper()) && behind.parentElement)
            behind = behind.parentElement;
        const both = [bright(getComputedStyle(element).color), bright(paper())];
        const [low, high] = both.sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    });
    const paper = getComputedStyle(document.documentElement).backgroundColor;
    return { least: Math.min(...ratios), count: ratios.length, paper: bright(paper) };
}"""


def check_narrow_and_dark(page: Page, url: str, shots: Path | None) -> str:
    """Nothing sticks out of a narrow screen, and all text can be read."""
    ask(page, "All three")
    done(page)
    page.set_viewport_size(NARROW)
    width: int = page.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW["width"], width
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found[scheme] = page.evaluate(CONTRASTS)
        assert found[scheme]["least"] >= 4.5, found
    assert found["light"]["paper"] > 0.9 and found["dark"]["paper"] < 0.05, found
    ratios = {scheme: round(of["least"], 1) for scheme, of in found.items()}
    return (
        f"{width} px wide; least contrast of {found['dark']['count']} texts: {ratios}"
    )


def check_snippets(page: Page, url: str, shots: Path | None) -> str:
    """What is copied runs, beside the picture, and answers the same."""
    page.locator("#question").fill('Describe the picture. (It\'s a "drawing".)')
    ask(page, "Pruned")
    done(page)
    answer = page.locator("output").inner_text()
    curl = page.locator("#curl").text_content()
    python = page.locator("#python").text_content()
    assert curl and python and KEY not in curl + python
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SAMPLE, folder)
        environment = {**os.environ, "KEY": KEY}
        for command in (["bash", "-c", curl], [sys.executable, "-c", python]):
            run = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            assert run.returncode == 0, run.stderr
            if command[0] == "bash":
                lines = [
                    s[6:] for s in run.stdout.splitlines() if s.startswith("data: {")
                ]
                choices = [c for s in lines for c in json.loads(s)["choices"]]
                said = "".join(choice["delta"]["content"] for choice in choices)
                assert said.strip() == answer, said
            else:
                assert "'event': 'end'" in run.stdout and answer[:8] in run.stdout
    page.locator("summary", has_text="curl").click()
    page.locator("[data-copy=curl]").click()
    expect(page.locator("#status")).to_contain_text("op")
    return f"curl and Python answer {answer!r}"


if __name__ == "__main__":
    main()
