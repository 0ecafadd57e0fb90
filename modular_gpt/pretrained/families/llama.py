"""Llama and the models that differ from it in few settings: https://arxiv.org/abs/2407.21783"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import ANY, HFConfig, Keys, PerLayer, key, modules
from modular_gpt.mapping.layer_map import layer_values
from modular_gpt.mapping.setting_map import switch
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.decoder_keys import RMSNORM, START, WINDOW, biases, dense, qk_norm, windows
from modular_gpt.pretrained.families.rope_config import rope, rope_by_type, temperature
from modular_gpt.pretrained.families.tensor_names import LLAMA
from modular_gpt.pretrained.family import Family

BASE = (START, RMSNORM, dense(), rope())
BIASED = (START, RMSNORM, dense(bias="mlp_bias"), rope(), biases())
MLP = (START, dense("mlp", "mlp_bias"), biases())
# with layer_types, which Ministral has, transformers takes a file of Mistral for one of that family
ALL_WINDOWED = (Keys(windows(keys.no_layer).from_hf), f"sliding_window <= {keys.WINDOW_PATH}")
LAST_WINDOWED = keys.switched_windows(windows(lambda i, settings: i < settings["max_window_layers"]))
FIRST_OF_FOUR = windows(lambda i, settings: i % 4 == 0)
SMOLLM = windows(lambda i, settings: not settings["use_sliding_window"] or keys.ROTATED.from_hf(settings)[i])
SCALES = "{attention,embedding,residual}_multiplier = {attention@mha.scale,embed_scale,residual_multiplier}"
GRANITE = (SCALES, key("logits_scaling", "logit_scale", lambda by: 1.0 / by, lambda scale: 1.0 / scale))


def _thetas(settings: HFConfig) -> PlainDict:
    """Granite's base of the wavelengths of each layer; 0: no positions."""
    thetas = layer_values(settings, "layer_rope_theta")
    names = PerLayer("rope" if theta else "none" for theta in thetas or ())
    return {"pos.name": names, "pos@rope.theta": PerLayer(theta or 10000.0 for theta in thetas)} if thetas else {}


THETAS = Keys(_thetas, lambda view: {"layer_rope_theta": [theta or 0 for theta in view.each("pos@rope.theta")]})
POST_NORM = switch("use_post_norm", "block.topology", "sandwich", "pre")
STARCODER = (
    (START, keys.layernorm("norm_epsilon"), dense("mlp", "use_bias"), rope(), biases("use_bias"), WINDOW),
    keys.dropouts("residual_dropout", "embedding_dropout", "attention_dropout"),
)
GLM4_NORMS = modules("post_{self_attn,mlp}_layernorm = {attention,ffn}_post_norm", names.LAYER)
GLM = (START, RMSNORM, dense(), rope(layout="interleaved", partial=True), biases("attention_bias", False))
PHI3 = (
    (START, RMSNORM, dense(), rope(partial=True), biases(False), WINDOW),
    keys.dropouts("resid_pdrop", "embd_pdrop", "attention_dropout"),
)
OLMO = (START, keys.norm("layernorm", 1e-5, affine=False, bias=False), dense(), rope(), biases(), keys.CLIP)
OLMO2 = (START, RMSNORM, dense(), biases(), qk_norm("full"), {"block.topology": "post_residual"})
OLMO2_TENSORS = (names.ENDS, names.POST_NORMS, names.ATTENTION, names.QK_NORM, names.GATED)
OLMO3 = (rope_by_type(keys.every(4), older=("rope_theta", "rope_local_base_freq")), windows(keys.every(4)))
FIRST_TOKEN = Keys(to_hf=lambda view: {"bos_token_id": 0})  # which must not be null
MLP_TENSORS = (*names.WHOLE, names.UP_DOWN)

FAMILIES = [
    Family("llama", BIASED, LLAMA),
    Family("mistral", (BASE, biases(False), ALL_WINDOWED), LLAMA),
    Family("qwen2", (BASE, biases(True, False), LAST_WINDOWED), LLAMA),
    Family("qwen3", (BASE, biases(), LAST_WINDOWED, qk_norm()), (*LLAMA, names.QK_NORM)),
    Family("ministral", (BASE, biases(False), windows(keys.no_layer)), LLAMA),
    Family("cwm", (BASE, dense(bias="mlp_bias"), biases(False), FIRST_OF_FOUR, FIRST_TOKEN), LLAMA),
    Family(
        "seed_oss",
        (BIASED, biases("attention_bias", "attention_out_bias")),
        LLAMA,
        harmless={"residual_dropout": ANY},  # for training, and no embedding has it
    ),
    Family("granite", (BIASED, GRANITE), LLAMA),
    Family(
        "granite_swa", (BIASED, GRANITE, THETAS, FIRST_OF_FOUR, {"attention@mha.sinks": True}), (*LLAMA, names.SINKS)
    ),
    Family(
        "hyperclovax",
        (BIASED, SCALES, "logits_scaling = logit_scale", POST_NORM),
        (*LLAMA, modules("post_{norm1,norm2} = {attention,ffn}_post_norm", names.LAYER)),
    ),
    Family("smollm3", (BIASED, keys.NO_ROPE_LAYERS, keys.switched_windows(SMOLLM)), LLAMA),
    Family("arcee", (MLP, rope(), RMSNORM), MLP_TENSORS),
    Family("nemotron", (MLP, rope(partial=True), keys.layernorm("norm_eps", weight_offset=True)), MLP_TENSORS),
    Family("jais2", (MLP, rope(), keys.layernorm("layer_norm_eps")), MLP_TENSORS),
    Family(
        "ministral3",
        (BASE, biases(False), WINDOW, temperature()),
        LLAMA,
        harmless={"rope_parameters.max_position_embeddings": ANY},
    ),
    Family("starcoder2", STARCODER, (*names.WHOLE, modules("mlp.{c_fc,c_proj} = ffn.{up,down}", names.LAYER))),
    Family("olmo", OLMO, LLAMA),
    Family("olmo2", (OLMO2, rope()), OLMO2_TENSORS),
    Family("olmo3", (OLMO2, OLMO3), OLMO2_TENSORS),
    Family(
        "hunyuan_v1_dense",
        (BASE, biases(), qk_norm(after_rope=True)),
        (*LLAMA, modules("{query,key}_layernorm = attention.{query,key}_norm", names.ATTN)),
    ),
    Family("phi3", PHI3, (names.ENDS, names.PRE_NORMS, names.FUSED_QKV, names.FUSED_GATED)),
    Family("glm", GLM, (*names.WHOLE, names.FUSED_GATED)),
    Family("glm4", (GLM, {"block.topology": "sandwich"}), (*names.WHOLE, GLM4_NORMS, names.FUSED_GATED)),
]
