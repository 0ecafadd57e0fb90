"""Metrics of generated answers. Some need packages of the extra ``metrics``, which are imported at first use."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Texts = Sequence[str]


@dataclass(frozen=True)
class Metric:
    """A metric of generated answers.

    answer: function of an expected and a generated answer
    corpus: function of all expected and generated answers; None: the mean of ``answer``
    package: required package; None: none
    """

    answer: Callable[[str, str], float]
    corpus: Callable[[Texts, Texts], float] | None = None
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the required package is installed."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def score(self, expected: Texts, generated: Texts) -> float:
        """The metric over all answers, of which there must be at least one."""
        if self.corpus is not None:
            return self.corpus(expected, generated)
        return sum(map(self.answer, expected, generated)) / len(expected)


def exact_match(expected: str, generated: str) -> float:
    """1 if the texts are equal except for leading and trailing white space, otherwise 0."""
    return float(expected.strip() == generated.strip())


def rouge_l(expected: str, generated: str) -> float:
    """F-measure of the longest common subsequence of words, from 0 to 1 (https://aclanthology.org/W04-1013)."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(expected, generated)["rougeL"].fmeasure)


def answer_chrf(expected: str, generated: str) -> float:
    """chrF of one answer: F-score of character n-grams, from 0 to 100."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(generated, [expected]).score)


def chrf(expected: Texts, generated: Texts) -> float:
    """chrF of a corpus, from 0 to 100 (https://aclanthology.org/W15-3049)."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(generated), [list(expected)]).score)


def answer_bleu(expected: str, generated: str) -> float:
    """Smoothed BLEU of one answer, from 0 to 100."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(generated, [expected]).score)


def bleu(expected: Texts, generated: Texts) -> float:
    """BLEU of a corpus, from 0 to 100 (https://aclanthology.org/P02-1040)."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(generated), [list(expected)]).score)


METRICS: dict[str, Metric] = {
    "exact_match": Metric(exact_match),
    "rouge_l": Metric(rouge_l, package="rouge_score"),
    "chrf": Metric(answer_chrf, chrf, package="sacrebleu"),
    "bleu": Metric(answer_bleu, bleu, package="sacrebleu"),
}


def score_answers(expected: Texts, generated: Texts) -> dict[str, float]:
    """Compute every metric whose package is installed over all answers, of which there must be at least one."""
    return {name: metric.score(expected, generated) for name, metric in METRICS.items() if metric.is_installed}


def score_answer(expected: str, generated: str) -> dict[str, float]:
    """Compute every metric whose package is installed for one answer."""
    return {name: metric.answer(expected, generated) for name, metric in METRICS.items() if metric.is_installed}


def missing_packages() -> list[str]:
    """The names of the metrics whose package is not installed."""
    return [name for name, metric in METRICS.items() if not metric.is_installed]
