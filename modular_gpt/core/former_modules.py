"""Former paths of modules, since version 0.1.0: importing one imports the present module.

``import modular_gpt`` installs a finder with the table below.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]

# Former module -> present module, below the package. Unchanged paths are omitted: ``model``, ``checkpoint`` and
# ``generation.strategies`` are now packages, whose ``__init__`` has the former names.
FORMER = {
    "config": "model.config",
    "init": "model.init",
    "loss": "model.loss",
    "summary": "model.summary",
    "vocabularies": "model.aliases",
    "shards": "checkpoint.sharded",
    "exchange": "checkpoint.hf_folder",
    "sources": "checkpoint.resolve",
    "export": "deploy.export",
    "packing": "deploy.cpu_packing",
    "core.offers": "core.weight_transfer",
    "core.settings": "core.validation",
    "core.sharing": "core.collectives",
    "core.recomputation": "core.activation_checkpointing",
    "core.files": "core.atomic_files",
    "nn.adopting": "nn.weight_transfer",
    "nn.together": "nn.fused_linear",
    "nn.grouped": "nn.grouped_mm",
    "nn.ops": "nn.sdpa",
    "nn.attention.latent": "nn.attention.mla",
    "nn.attention.multi_head": "nn.attention.mha",
    "generation.decoder": "generation.runner",
    "generation.text": "generation.sequences",
    "generation.settings": "generation.config",
    "generation.beam": "generation.strategies.beam",
    "generation.contrastive": "generation.strategies.contrastive",
    "generation.speculative": "generation.strategies.speculative",
    "data.tokens": "data.token_files",
    "data.windows": "data.torch_dataset",
    "data.permutation": "data.shuffle",
    "data.storage": "data.cache_dir",
    "pretrained.source": "weights.hub",
    "pretrained.files": "weights.tensor_files",
    "pretrained.surgery": "model.surgery",
    "pretrained.rules": "mapping.tensor_map",
    "pretrained.config_map": "mapping.hf_config",
    "pretrained.setting_map": "mapping.setting_map",
    "pretrained.tensor_map": "mapping.tensor_map",
    "pretrained.loading": "pretrained.load",
    "pretrained.saving": "pretrained.save",
    "pretrained.families.shared": "pretrained.families.decoder_keys",
    "pretrained.families.rotary": "pretrained.families.rope_config",
    "evaluation.text": "evaluation.perplexity",
    "training.hardware": "runtime.device",
    "training.allocator": "runtime.cpu_allocator",
    "training.environment": "runtime.environment",
    "training.stop": "runtime.signals",
    "training.processes": "runtime.processes",
    "training.parallel": "distributed",
    "training.parallel.base": "distributed.strategy",
    "training.parallel.data": "distributed.ddp",
    "training.parallel.sharded": "distributed.fsdp",
    "training.parallel.tensors": "distributed.tensor_parallel",
    "training.parallel.parts": "distributed.dtensor",
    "training.parallel.pieces": "distributed.sharded_checkpoint",
    "training.optim": "optim",
    "training.muon": "optim.muon",
    "training.schedule": "optim.schedules",
    "training.patterns": "optim.parameter_patterns",
    "training.start": "training.finetune",
    "training.building": "training.build",
    "training.state": "training.checkpointing",
    "training.directory": "training.run_directory",
    "training.facts": "training.run_info",
    "training.meter": "training.mfu",
    "training.diagnosis": "training.nonfinite",
    "training.compiling": "training.compile",
    "cli._app": "cli.app",
    "cli._help": "cli.help",
    "cli._multirun": "cli.sweep",
    "cli._compose": "cli.composition.compose",
    "cli._overrides": "cli.composition.overrides",
    "cli._settings": "cli.composition.schema",
    "cli._errors": "cli.composition.errors",
    "cli._conf_dir": "cli.composition.conf_dir",
    "cli._plain": "cli.composition.flat_config",
    "cli._run": "cli.composition.train_config",
    "cli._names": "cli.composition.run_name",
    "cli._conversation": "cli.repl",
    "cli._writer": "cli.text_writer",
    "cli._writing": "cli.generate_task",
    "cli._converting": "cli.convert_task",
    "cli._evaluating": "cli.evaluate_task",
}

# Former module -> former name -> present name; a name that moved to another module is written with its path.
NAMES = {
    "core.offers": {
        "AttentionOffer": "AttentionWeights",
        "FeedForwardOffer": "FeedForwardWeights",
        "NormOffer": "NormWeights",
        "Adopted": "TransferReport",
    },
    "core.files": {
        "flush": "fsync",
        "sweep": "remove_stale",
        "exclusive": "file_lock",
        "point": "link",
        "follow": "resolve_link",
    },
    "core.recomputation": {"recomputed": "checkpointed", "second_time": "is_recomputing"},
    "core.sharing": {"sharing_batches": "data_parallel_region", "batch_sum": "all_reduce_sum"},
    "generation.decoder": {"Decoder": "ModelRunner"},
    "generation.settings": {"GenerationSettings": "GenerationConfig"},
    "generation.speculative": {"Speculation": "SpeculativeDecoding"},
    "generation.text": {"Text": "TokenBuffer", "Noise": "RowGenerators"},
    "loss": {"LossSettings": "LossConfig"},
    "nn.adopting": {"offer_of": "head_weights", "adopt_heads": "init_heads"},
    "nn.ops": {"Scoring": "AttentionScoreConfig", "attend": "sdpa", "share_of_heads": "shard_heads"},
    "nn.together": {"together": "fused_linear"},
    "pretrained.loading": {"own_tensors": "model.materialize:saved_tensors"},
    "pretrained.rules": {"Rule": "TensorMapping", "Link": "TensorPair"},
    "pretrained.saving": {"their_tensors": "hf_tensors"},
    "shards": {"Piece": "TensorShard"},
    "training.diagnosis": {"first_not_finite": "find_first_nonfinite"},
    "training.facts": {"write_facts": "save_run_info"},
    "training.meter": {"Meter": "ThroughputMonitor"},
    "training.optim": {
        "AdamW": "optim.adamw:AdamW",
        "Muon": "optim.muon:Muon",
        "Adafactor": "optim.adafactor:Adafactor",
        "parameter_groups": "optim.base:parameter_groups",
    },
    "training.parallel.parts": {"whole_of": "full_tensor", "part_like": "distribute_like"},
    "training.processes": {"Processes": "ProcessGroup"},
    "training.start": {"started": "init_from_source"},
    "training.stop": {"Stop": "GracefulShutdown"},
}


class FormerModules(MetaPathFinder, Loader):
    """Import finder and loader of former paths, for which it gives the present modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        if package != PACKAGE or module not in FORMER:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Replace ``module`` by the present one; if names have changed, too, fill it with present and former names."""
        former = module.__name__.partition(".")[2]
        present = importlib.import_module(f"{PACKAGE}.{FORMER[former]}")
        if former not in NAMES:
            sys.modules[module.__name__] = present
            return
        public = {name: value for name, value in vars(present).items() if not name.startswith("__")}
        module.__dict__.update(public)
        module.__doc__ = f"The former path of {present.__name__}."
        for former_name, place in NAMES[former].items():
            path, _, name = place.rpartition(":")
            source = importlib.import_module(f"{PACKAGE}.{path}") if path else present
            setattr(module, former_name, getattr(source, name))


def install() -> None:
    """Make the former paths importable; a second call changes nothing.

    The finder comes first, since the search of a package's folder would load a present file under a second name.
    """
    if not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerModules())
