"""Worker processes need thumbnails of the same pictures; each thumbnail is made once.

A function that makes a file at the path given to it becomes one that returns a path::

    @cache.builder(name="thumbnail.png", inputs=lambda image, size: [image])
    def thumbnail(target: Path, image: Path, size: int) -> None: ...

    path = thumbnail(image, 128)

What the picture holds is part of the key: when it changes, the next to ask makes a new
thumbnail, and the others wait for it.  An editor that saves the same picture again costs
nothing.

Run it::

    python examples/thumbnails.py                         # draws pictures, to have some
    python examples/thumbnails.py --cache DIR *.jpg       # yours; keep the thumbnails

What one sees: who made which thumbnail; that nobody makes any when all ask again; and, if
the pictures are the example's own, who makes one anew after its picture has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageOps

from atomcache import Cache

if TYPE_CHECKING:
    from multiprocessing.pool import Pool

    from atomcache import Memoized


def say(line: str) -> None:
    """Print a line by one call, so that those of several processes don't mix."""
    print(f"{line}\n", end="", flush=True)


def thumbnails(cache: Cache) -> Memoized[[Path, int], Path]:
    """Return the function that gives thumbnails, from the cache or new."""

    @cache.builder(
        name="thumbnail.png",
        inputs=lambda image, size: [image],
        version="source",  # a change of this code makes new ones, too
    )
    def thumbnail(target: Path, image: Path, size: int) -> None:
        with Image.open(image) as picture:
            small = ImageOps.exif_transpose(picture)
            small.thumbnail((size, size))
            small.save(target)
        say(f"  worker {os.getpid()} made the thumbnail of {image.name}")

    return thumbnail


def work(cache: Cache, images: list[Path], size: int) -> list[Path]:
    """Get all thumbnails: what each worker process does."""
    thumbnail = thumbnails(cache)
    return [thumbnail(image, size) for image in images]


def run(pool: Pool, workers: int, *job: Any) -> list[Path]:
    """Have several workers ask for all thumbnails at the same time."""
    answers = pool.starmap(work, [job] * workers, chunksize=1)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def draw(image: Path, color: str) -> None:
    """Draw a picture, to have one: a sun on a blue sky."""
    picture = Image.new("RGB", (1200, 800), "skyblue")
    ImageDraw.Draw(picture).ellipse((400, 200, 800, 600), fill=color)
    picture.save(image)


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, help="pictures (some of its own)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="pixels (128)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="how many (4)")
    parser.add_argument("--cache", metavar="DIR", help="keep thumbnails here (not at all)")
    options = parser.parse_args()

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache = Cache(options.cache or folder / "cache")
        images = [image.resolve() for image in options.images]
        if not options.images:
            images = [folder / f"{color}.png" for color in ("gold", "orange", "tomato")]
            for image in images:
                draw(image, image.stem)

        job = (cache, images, options.size)
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(options.workers))
        say("All workers ask for all thumbnails")
        found = run(pool, options.workers, *job)
        say("All ask again")
        run(pool, options.workers, *job)
        if not options.images:
            draw(images[0], "white")
            say(f"All ask again, after {images[0].name} was drawn anew")
            found = run(pool, options.workers, *job)
        for image, path in zip(images, found, strict=True):
            with Image.open(path) as small:
                print(f"{image.name}: {small.width} x {small.height} pixels, {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
