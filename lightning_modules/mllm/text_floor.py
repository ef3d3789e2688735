"""What a question's text alone tells: the floor above which an answer shows that the image was looked at."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from datamodules.image_text.sample import Sample
from lightning_modules.mllm.scoring import vqa_accuracy


def text_floor(train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, float]:
    """`vqa_accuracy` of the commonest training answer to each question's text.

    A text that was never trained on gets the commonest answer of all; of equally common ones the first in the training
    set is taken. Empty without training samples, and where no kind of question (`closed`) is known.
    """
    if not train or all(sample.closed is None for sample in test):
        return {}
    by_text: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
    for sample in train:
        by_text[sample.text][sample.answer] += 1
    of_all = Counter(sample.answer for sample in train)
    told = [by_text.get(sample.text, of_all).most_common(1)[0][0] for sample in test]
    return vqa_accuracy(told, [sample.answer for sample in test], [bool(sample.closed) for sample in test])
