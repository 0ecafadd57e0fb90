"""GPTModel as a model of the transformers library, for ``generate``, ``Trainer``, ``save_pretrained`` and PEFT.

Importing this package registers the model type for ``AutoModelForCausalLM.from_pretrained(path)``::

    import modular_gpt.hf
    model = AutoModelForCausalLM.from_pretrained("my-model")
"""

from transformers import AutoConfig, AutoModelForCausalLM

from modular_gpt.hf.cache import GenerationCache
from modular_gpt.hf.configuration import ModularGPTConfig
from modular_gpt.hf.model import ModularGPTForCausalLM
from modular_gpt.hf.tokenizer import to_transformers

__all__ = ["GenerationCache", "ModularGPTConfig", "ModularGPTForCausalLM", "to_transformers"]

AutoConfig.register(ModularGPTConfig.model_type, ModularGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(ModularGPTConfig, ModularGPTForCausalLM, exist_ok=True)
