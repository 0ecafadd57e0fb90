"""Metrics of generated answers; the packages of some are in the extra ``metrics`` and imported when they are used."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Texts = Sequence[str]


@dataclass(frozen=True)
class Metric:
    """A metric of generated answers.

    one: of an answer, from the expected and the generated text
    all: of all answers together; None: the mean of ``one``
    package: that has to be installed
    """

    one: Callable[[str, str], float]
    all: Callable[[Texts, Texts], float] | None = None
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def mean(self, expected: Texts, generated: Texts) -> float:
        """The metric of all answers together; there is at least one."""
        if self.all is not None:
            return self.all(expected, generated)
        return sum(map(self.one, expected, generated)) / len(expected)


def exact_match(expected: str, generated: str) -> float:
    """1 if the texts are equal, apart from white space around them."""
    return float(expected.strip() == generated.strip())


def rouge_l(expected: str, generated: str) -> float:
    """F-measure of the longest common subsequence of words, from 0 to 1 (https://aclanthology.org/W04-1013)."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(expected, generated)["rougeL"].fmeasure)


def chrf_of_one(expected: str, generated: str) -> float:
    """F-score of character n-grams of one text, from 0 to 100."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(generated, [expected]).score)


def chrf(expected: Texts, generated: Texts) -> float:
    """F-score of character n-grams, from 0 to 100 (https://aclanthology.org/W15-3049)."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(generated), [list(expected)]).score)


def bleu_of_one(expected: str, generated: str) -> float:
    """Smoothed BLEU of one text, from 0 to 100."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(generated, [expected]).score)


def bleu(expected: Texts, generated: Texts) -> float:
    """BLEU, from 0 to 100 (https://aclanthology.org/P02-1040)."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(generated), [list(expected)]).score)


METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match),
    "rouge_l": Metric(rouge_l, package="rouge_score"),
    "chrf": Metric(chrf_of_one, chrf, package="sacrebleu"),
    "bleu": Metric(bleu_of_one, bleu, package="sacrebleu"),
}


def score_answers(expected: Texts, generated: Texts) -> dict[str, float]:
    """The metrics of all answers together, of the packages that are installed; there is at least one answer."""
    return {name: metric.mean(expected, generated) for name, metric in METRICS.items() if metric.is_installed}


def score_answer(expected: str, generated: str) -> dict[str, float]:
    """The metrics of one answer, of the packages that are installed."""
    return {name: metric.one(expected, generated) for name, metric in METRICS.items() if metric.is_installed}


def missing_packages() -> list[str]:
    """The metrics that are left out since their package is not installed."""
    return [name for name, metric in METRICS.items() if not metric.is_installed]
