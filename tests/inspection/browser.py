"""Headless Chromium for tests of pages: run a script inside the page and return its result."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000")
WRAPPER = """<!doctype html><body style="margin:0"><pre id="result"></pre>
<script>
addEventListener("message", (event) => {{ document.getElementById("result").textContent = event.data }});
</script>
<iframe src="inside.html" style="width:{width}px;height:800px;border:0"></iframe>"""
INSIDE = """<script>
// a pointer that touches what is visible at a point of the window
const touch = (type, x, y) => {{
  const target = document.elementFromPoint(x, y);
  if (target) target.dispatchEvent(new PointerEvent(type, {{ clientX: x, clientY: y, bubbles: true }}));
  return target;
}};
addEventListener("load", () => {{
  let result;
  try {{ result = (() => {{ {script} }})(); }} catch (error) {{ result = "error: " + error; }}
  parent.postMessage(JSON.stringify(result), "*");
}});
</script>"""


def run_in_page(page: Path, folder: Path, script: str, width: int = 1000, dark: bool = False) -> Any:
    """Result of a JavaScript function body inside a page of the given width; skips without Chromium."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    text = page.read_text(encoding="utf-8") + INSIDE.format(script=script)
    (folder / "inside.html").write_text(text, encoding="utf-8")
    (folder / "outside.html").write_text(WRAPPER.format(width=width), encoding="utf-8")
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1300,900"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [CHROMIUM, *flags, "--dump-dom", (folder / "outside.html").as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not answer on this machine")
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None or not found[1]:
        pytest.skip(f"Chromium does not run here: {done.stderr[-300:]}")
    return json.loads(unescape(found[1]))
