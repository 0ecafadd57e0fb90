"""Settings of a benchmark: workloads, sizes, and number of rounds."""

from dataclasses import dataclass, field

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import one_of, positive
from modular_gpt.deploy.cpu_packing import PACKINGS

MEASURES = ("train", "prefill", "decode")
DTYPES = ("float32", "bf16")


@dataclass
class BenchmarkConfig:
    """Settings of a benchmark.

    context: Context lengths, the number of tokens per row in training and prefill, and before the decoded tokens.
    batch: Batch sizes.
    measure: Workloads to measure, among train, prefill and decode.
    rounds: Number of timed runs of each variant, interleaved with the others.
    decode_tokens: Number of tokens to decode per round.
    precision: Precision, float32 or bf16, of training, and of the weights in prefill and decoding.
    packing: Packing of the weights in prefill and decoding on a CPU, none, onednn or int8.
    compile: Compile the training step with torch.compile.
    threads: Number of CPU threads. By default (null) OMP_NUM_THREADS, or one per physical core.
    """

    context: list[int] = field(default_factory=lambda: [1024])
    batch: list[int] = field(default_factory=lambda: [1])
    measure: list[str] = field(default_factory=lambda: list(MEASURES))
    rounds: int = 5
    decode_tokens: int = 16
    precision: str = "float32"
    packing: str = "none"
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("context", self.context), ("batch", self.batch), ("measure", self.measure)):
            if not values:
                raise ConfigError(f"{name} is empty: give one or several values, such as {name}={_example(name)}")
        for context in self.context:
            positive("benchmark", context=context)
        for batch in self.batch:
            positive("benchmark", batch=batch)
        for measure in self.measure:
            one_of(measure, MEASURES, "measure")
        positive("benchmark", rounds=self.rounds, decode_tokens=self.decode_tokens, threads=self.threads)
        one_of(self.precision, DTYPES, "precision")
        one_of(self.packing, tuple(PACKINGS), "packing")

    @property
    def decoded(self) -> int:
        """Number of tokens decoded in all rounds, including an untimed one."""
        return (self.rounds + 1) * self.decode_tokens


def _example(name: str) -> str:
    return {"context": "1024,4096", "batch": "1,8", "measure": "train,decode"}[name]
