"""What a fit leaves behind is freed when it ends."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cleared() -> Iterator[None]:
    """Free the cycles that came into being in the block.

    A trainer, its loops, loaders and callbacks hold one another, so that the collector alone can free them; in a
    process of a million objects it looks at everything so seldom that hundreds of trainers pile up. Here it need not
    look at what was there before the block, so a pass takes milliseconds.
    """
    already = gc.get_freeze_count() > 0  # somebody else's: not ours to undo
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if not already:
            gc.unfreeze()
