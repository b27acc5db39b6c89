"""What `examples/thumbnails.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "thumbnails.py"
TIMEOUT = 60.0


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(example: subprocess.Popen[str]) -> str:
    try:
        output, errors = example.communicate(timeout=TIMEOUT)
    finally:
        example.kill()
    assert (example.returncode, errors) == (0, ""), output + errors
    return output


def made(output: str) -> list[str]:
    return sorted(re.findall(r"made the thumbnail of (\S+)", output))


def thumbnail(output: str, image: Path) -> Path:
    found = re.search(rf"^{re.escape(image.name)}: .* pixels, (.+)$", output, re.MULTILINE)
    assert found is not None, output
    return Path(found[1])


def draw(image: Path, color: str) -> Path:
    Image.new("RGB", (400, 300), color).save(image)
    return image


def test_each_thumbnail_is_made_once_and_again_when_its_picture_changes() -> None:
    first, _, later = finish(start()).partition("All ask again\n")
    second, _, third = later.partition("All ask again, after gold.png")
    assert made(first) == ["gold.png", "orange.png", "tomato.png"]
    assert made(second) == []
    assert made(third) == ["gold.png"]


def test_programs_started_together_make_each_thumbnail_once(tmp_path: Path) -> None:
    images = [draw(tmp_path / f"{color}.png", color) for color in ("red", "lime", "blue")]
    arguments = ("--workers=2", "--cache", tmp_path / "cache", *images)
    examples = [start(*arguments) for _ in range(3)]
    outputs = [finish(example) for example in examples]
    assert made("".join(outputs)) == ["blue.png", "lime.png", "red.png"]
    for image in images:
        [path] = {thumbnail(output, image) for output in outputs}
        with Image.open(path) as small, Image.open(image) as picture:
            assert small.size == (128, 96)
            assert small.getpixel((64, 48)) == picture.getpixel((64, 48))


def test_only_a_picture_that_holds_something_else_gets_a_new_one(tmp_path: Path) -> None:
    changed, saved = draw(tmp_path / "changed.png", "red"), draw(tmp_path / "saved.png", "red")
    arguments = ("--workers=1", "--cache", tmp_path / "cache", changed, saved)
    before = finish(start(*arguments))
    draw(changed, "blue")
    draw(saved, "red")
    os.utime(saved, (1, 1))
    after = finish(start(*arguments))
    assert made(after) == ["changed.png"]
    assert thumbnail(after, saved) == thumbnail(before, saved)
    with Image.open(thumbnail(after, changed)) as small:
        assert small.getpixel((64, 48)) == (0, 0, 255)
