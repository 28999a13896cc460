"""A page in headless Chromium: whether it scrolls sideways, whether texts overlap, how small they are."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine"
)
SMALLEST_PIXELS = 11
FRAME = """<body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<pre id="result"></pre><script>
const problems = [];
document.querySelector("iframe").addEventListener("load", event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  if (root.scrollWidth > root.clientWidth) problems.push(`scrolls to ${{root.scrollWidth}} pixels`);
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT), boxes = [];
  for (let node; node = texts.nextNode();) {{
    const parent = node.parentElement, words = node.data.trim();
    if (!words || parent.closest("script, style, title")) continue;
    const range = page.createRange();
    range.selectNodeContents(node);
    const scale = parent.ownerSVGElement ? parent.getScreenCTM().a : 1;
    const size = scale * parseFloat(getComputedStyle(parent).fontSize);
    for (const box of range.getClientRects()) {{
      if (box.width < 1 || box.height < 1) continue;
      boxes.push([box, words]);
      if (size < {smallest}) problems.push(`${{size.toFixed(1)}} pixels: ${{words}}`);
    }}
  }}
  boxes.sort((a, b) => a[0].top - b[0].top);
  boxes.forEach(([a, first], i) => {{
    for (let j = i + 1; j < boxes.length && boxes[j][0].top < a.bottom - 3; j++) {{
      const [b, second] = boxes[j];
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - b.top;
      if (across > 2 && down > 4) problems.push(`overlap: ${{first}} | ${{second}}`);
    }}
  }});
  document.getElementById("result").textContent = JSON.stringify([boxes.length, [...new Set(problems)]]);
}});
</script>"""


def problems(page: Path, width: int, folder: Path) -> list[str]:
    """Return what is wrong with `page` at a width in pixels, everything unfolded; `folder` is for scratch."""
    assert CHROMIUM is not None, "CI needs Chromium: apt-get install chromium"
    frame = folder / f"frame_{width}.html"
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width, smallest=SMALLEST_PIXELS))
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900"),
        *("--virtual-time-budget=20000", "--dump-dom", frame.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    result = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert result, dom[-500:]
    texts, found = json.loads(html.unescape(result[1]))
    assert texts > 20
    return list(found)
