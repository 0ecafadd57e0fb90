"""Choice of the strategy by the number of processes."""

from dataclasses import dataclass

from modular_gpt.core.registry import ComponentConfig, decode
from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.runtime.processes import ProcessGroup


class Automatic(Parallel, name="auto"):
    """ddp if torchrun started several processes, otherwise none."""

    single_process = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of ddp."""

    @classmethod
    def resolve(cls, config: ComponentConfig, processes: ProcessGroup) -> ComponentConfig:
        if processes.world == 1:
            return decode("parallel", "none")
        assert isinstance(config, ParallelConfig)
        return decode("parallel", {"name": "ddp", "timeout": config.timeout})
