"""One file a raw image-text set, as distributed; each reader turns a raw folder into a `Corpus` or says why it cannot.

A damaged list (JSON, TSV) is an error that names file and line. A missing or undecodable image is no error: its sample
is left out and listed in `Corpus.rejected`, or kept without it where the configuration says so.
"""

from pathlib import Path
from typing import Protocol

from datamodules.image_text.sample import Corpus


class Reader(Protocol):
    """What the doors ask of a raw set."""

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """The whole set. cache: file that remembers which images were looked at. Raises InputError."""
        ...
