"""The contract that readers and models share."""

from dataclasses import FrozenInstanceError

import pytest

from datamodules.image_text.sample import Corpus, Sample


def test_a_sample_cannot_be_changed_behind_its_fingerprint():
    sample = Sample("1", None, "a caption", "harmless", 0)
    assert (sample.group, sample.closed) == ("", None)
    with pytest.raises(FrozenInstanceError):
        sample.text = "another"


def test_corpora_do_not_share_their_lists():
    one, two = (Corpus(name, name, "generation", (), [], [], "0", True) for name in "ab")
    one.rejected.append(("x", "y"))
    assert two.rejected == [] and two.further == {}
