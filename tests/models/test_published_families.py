"""Configs as they are published: every field is read, every tensor that transformers makes of them has its place."""

import copy
import json
import math
import re
from urllib.parse import urlencode

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from transformers.core_model_loading import revert_weight_conversion

from sft_jax.models import Decoder, Execution, load_pretrained
from sft_jax.models.families import get_family
from sft_jax.sources import TensorEntry
from sft_jax.sources.mxfp4 import decoded
from tests.models import families, reference

SERVED = {  # what says nothing of what is computed
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
OLMO3 = SERVED | {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "attention_bias": False,
    "eos_token_id": 100257,
    "pad_token_id": 100277,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 8,
    "sliding_window": 4096,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "tie_word_embeddings": False,
    "transformers_version": "4.57.0",
    "vocab_size": 100278,
}
PHI = SERVED | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + 0.01 * pair for pair in range(48)],
        "long_factor": [1.0 + 1.2 * pair for pair in range(48)],
    },
    "sliding_window": 262144,
}
PHI35 = PHI | {
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
PHI4 = PHI | {
    "bos_token_id": 199999,
    "eos_token_id": 199999,
    "pad_token_id": 199999,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
MINISTRAL = SERVED | {
    "model_type": "ministral3",
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "vocab_size": 131072,
}
GRANITE = SERVED | {
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49159,
}
GRANITE4 = GRANITE | {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "embedding_multiplier": 12,
    "hidden_size": 2560,
    "init_method": "mup",
    "layer_types": ["attention"] * 40,
    "logits_scaling": 10,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 40,
    "mamba_d_state": 256,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 128,
    "mamba_proj_bias": False,
    "normalization_function": "rmsnorm",
    "num_attention_heads": 40,
    "num_experts_per_tok": 0,
    "num_local_experts": 0,
    "output_router_logits": False,
    "position_embedding_type": "rope",
    "router_aux_loss_coef": 0.01,
    "shared_intermediate_size": 8192,
    "vocab_size": 100352,
}

GPT_OSS = SERVED | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}

DEEPSEEK_V3 = SERVED | {  # beside the quantization_config of its files in 8 bits
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
MOONLIGHT = DEEPSEEK_V3 | {
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163586,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}
# Numbers as in THUDM/slime, scripts/models/glm4.5-355B-A32B.sh, and ggml-org/llama.cpp#15026.
GLM4_MOE = SERVED | {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": True,
    "vocab_size": 151552,
}
# As in THUDM/slime, scripts/models/glm4.5-106B-A12B.sh, and ggml-org/llama.cpp#15026.
GLM_AIR = GLM4_MOE | {
    "first_k_dense_replace": 1,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_hidden_layers": 46,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}
# As in THUDM/slime, scripts/models/glm4.7-30B-A3B.sh, and the defaults of transformers' Glm4MoeLiteConfig.
GLM_FLASH = SERVED | {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "attention_bias": False,
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}

GEMMA4 = {
    "model_type": "gemma4_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": None,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": False,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}
GEMMA4_LARGE = GEMMA4 | {
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "num_kv_shared_layers": 0,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
}
GEMMA4_31B = GEMMA4_LARGE | {
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
    "num_attention_heads": 32,
    "num_global_key_value_heads": 4,
    "num_hidden_layers": 60,
    "num_key_value_heads": 16,
}
GEMMA4_26B = GEMMA4_LARGE | {
    "enable_moe_block": True,
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
    "moe_intermediate_size": 704,
    "num_attention_heads": 16,
    "num_experts": 128,
    "num_global_key_value_heads": 2,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "top_k_experts": 8,
}
GEMMA4_12B = {
    **{name: GEMMA4_LARGE[name] for name in GEMMA4_LARGE if not re.search("moe|expert|per_layer", name)},
    "model_type": "gemma4_unified_text",
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
    "num_attention_heads": 16,
    "num_global_key_value_heads": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}
GEMMA4_E2B = GEMMA4 | {
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 6144,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    "num_attention_heads": 8,
    "num_hidden_layers": 35,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
}
GEMMA4_E4B = GEMMA4 | {
    "hidden_size": 2560,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 10240,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
    "num_attention_heads": 8,
    "num_hidden_layers": 42,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 18,
}
DELTA = SERVED | {
    "full_attention_interval": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
}
# As in THUDM/slime, scripts/models/qwen3-next-80B-A3B.sh, and the metadata in ggml-org/llama.cpp#17578.
QWEN3_NEXT = DELTA | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "output_router_logits": False,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN35 = DELTA | {
    "attention_bias": False,
    "attn_output_gate": True,
    "eos_token_id": 248044,
    "mamba_ssm_dtype": "float32",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "vocab_size": 248320,
}
# As in THUDM/slime, scripts/models/qwen3.5-0.8B.sh; that value heads are 16 no public script says, but the size of the
# model does: 0.75 B parameters, with those for images 0.85 B.
QWEN35_SMALL = QWEN35 | {
    "model_type": "qwen3_5_text",
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "linear_num_value_heads": 16,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 6,
    "mlp_only_layers": [],
    "num_attention_heads": 8,
    "num_hidden_layers": 24,
    "tie_word_embeddings": True,
}
# As in THUDM/slime, scripts/models/qwen3.5-27B.sh, and, of its delta nets, the metadata in ggml-org/llama.cpp#22673.
QWEN35_LARGE = QWEN35 | {
    "model_type": "qwen3_5_text",
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "linear_num_value_heads": 48,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 16,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "output_gate_type": "swish",
}
# As in THUDM/slime, scripts/models/qwen3.5-35B-A3B.sh; ollama/ollama#16031 counts 35.95 billion parameters, with those
# for images and of the layer behind the last one.
QWEN35_MOE = QWEN35 | {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 10,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 40,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
}

# name -> (config.json, parameters)
PUBLISHED = {
    "gemma-4-31B": (GEMMA4_31B, 30_697_345_340),
    "gemma-4-26B-A4B": (GEMMA4_26B, 25_233_141_790),
    "gemma-4-12B": (GEMMA4_12B, 11_907_350_320),
    "gemma-4-E2B": (GEMMA4_E2B, 4_628_569_379),
    "gemma-4-E4B": (GEMMA4_E4B, 7_463_013_418),
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200),
    "Moonlight-16B": (MOONLIGHT, 15_960_110_208),
    "GLM-4.5": (GLM4_MOE, 352_797_829_024),
    "GLM-4.5-Air": (GLM_AIR, 106_852_251_264),
    "GLM-4.7-Flash": (GLM_FLASH, 29_943_393_920),
    "Qwen3-Next-80B-A3B": (QWEN3_NEXT, 79_674_391_296),
    "Qwen3.5-0.8B": (QWEN35_SMALL, 752_393_024),
    "Qwen3.5-27B": (QWEN35_LARGE, 26_895_998_464),
    "Qwen3.5-35B-A3B": (QWEN35_MOE, 34_660_610_688),
    "gpt-oss-20b": (GPT_OSS, 20_914_757_184),
    "gpt-oss-120b": (
        GPT_OSS
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 18,
            "num_hidden_layers": 36,
            "num_local_experts": 128,
        },
        116_829_156_672,
    ),
    "granite-3.3-2b": (GRANITE, 2_533_539_840),
    "granite-4.0-micro": (GRANITE4, 3_402_836_480),
    "Ministral-3-3B": (
        MINISTRAL
        | {"hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26, "tie_word_embeddings": True},
        3_429_006_336,
    ),
    "Ministral-3-8B": (
        MINISTRAL
        | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34, "tie_word_embeddings": False},
        8_489_553_920,
    ),
    "Olmo-3-7B": (OLMO3, 7_298_011_136),
    "Phi-3.5-mini": (PHI35, 3_821_079_552),
    "Phi-4-mini": (PHI4, 3_836_021_760),
}


# What a small one of the first layers needs besides: the last one of Gemma 4 sees all positions.
_GEMMA4_SMALL = {"num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1}
SMALL = {
    "gemma-4-31B": _GEMMA4_SMALL,
    "gemma-4-26B-A4B": _GEMMA4_SMALL | {"num_experts": 16, "moe_intermediate_size": 16},
    "gemma-4-12B": _GEMMA4_SMALL,
    "gemma-4-E2B": _GEMMA4_SMALL
    | {"num_hidden_layers": 10, "num_kv_shared_layers": 4, "vocab_size_per_layer_input": 320},
    "gemma-4-E4B": _GEMMA4_SMALL
    | {"num_hidden_layers": 12, "num_kv_shared_layers": 6, "vocab_size_per_layer_input": 320},
}


# Billions of weights that a token is multiplied by, the head's among them, as published: in the names of the models, in
# the model cards of gpt-oss (3.61 and 5.13) and Gemma 4, and in DeepSeek-AI 2024.
ACTIVE = {
    "gemma-4-26B-A4B": 3.8,
    "DeepSeek-V3": 37,
    "GLM-4.5": 32,
    "GLM-4.5-Air": 12,
    "Qwen3-Next-80B-A3B": 3,
    "Qwen3.5-35B-A3B": 3,
    "gpt-oss-20b": 3.61,
    "gpt-oss-120b": 5.13,
}


def theirs(fields: dict) -> transformers.PreTrainedConfig:
    fields = copy.deepcopy(fields)
    return transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_maps_with_nothing_left_over(name):
    fields, parameters = PUBLISHED[name]
    config = get_family(fields).decoder_config(copy.deepcopy(fields))
    table = get_family(fields).tensor_table(config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs(fields))
    tensors = revert_weight_conversion(model, model.state_dict())
    stored = {label: tuple(tensor.shape) for label, tensor in tensors.items()}
    assert {rule.source: rule.shape for rule in table if rule.path} == {
        label: shape for label, shape in stored.items() if label != "lm_head.weight" or not config.tie_embeddings
    }
    decoder = Decoder(config, Execution(layer_layout="unrolled"))
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    flat = flatten_dict(shapes, sep="/")
    assert {rule.path for rule in table if rule.path} == flat.keys()
    assert sum(math.prod(leaf.shape) for leaf in flat.values()) == parameters


@pytest.mark.parametrize("name", ACTIVE)
def test_weights_that_a_token_is_multiplied_by_are_those_that_are_published(name):
    """Of names that round down, such as A3B for 3.6, to less than one."""
    fields, stated = PUBLISHED[name][0], ACTIVE[name]
    found = sum(get_family(fields).decoder_config(copy.deepcopy(fields)).matmul_params()) / 1e9
    digits = len(str(stated).partition(".")[2])
    assert found == pytest.approx(stated, abs=0.9 if digits == 0 else 0.6 / 10**digits)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_that_transformers_writes_of_it_is_the_same_model(name):
    """transformers 5 has rope in objects of its own."""
    fields, _ = PUBLISHED[name]
    rewritten = theirs(fields).to_dict()
    family = get_family(fields)
    assert "rope_scaling" not in rewritten
    assert family.decoder_config(rewritten) == family.decoder_config(copy.deepcopy(fields))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_small_random_model_of_a_published_config(tmp_path, name):
    """Of the first layers; of OLMo 3 they are of both kinds."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name][0]))
    sizes = {"num_hidden_layers": 4, "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 96 if name == "Phi-3.5-mini" else 128}
    if "num_experts_per_tok" in PUBLISHED[name][0] and "num_experts" in PUBLISHED[name][0]:
        sizes |= {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
    sizes |= {"shared_intermediate_size": 48} if name == "granite-4.0-micro" else {}
    if "n_routed_experts" in PUBLISHED[name][0]:
        sizes |= {"n_routed_experts": 16, "moe_intermediate_size": 8}
    if "kv_lora_rank" in PUBLISHED[name][0]:
        sizes |= {"num_key_value_heads": 2, "head_dim": 64}
    sizes |= SMALL.get(name, {})
    model, params = load_pretrained(f"random:{tmp_path}?{urlencode(sizes)}")
    assert model.config.num_layers == sizes["num_hidden_layers"]
    if "gemma-4" in name:
        assert model.config.layer_windows[0] in (512, 1024)
        assert model.config.layer_windows[-1] == 0
    else:
        assert model.config.layer_windows[-2:] == ((4096, 0) if name == "Olmo-3-7B" else model.config.layer_windows[:2])
    assert np.isfinite(reference.logits_of(model, params, reference.tokens(1, 8))).all()


def test_olmo3_that_versions_of_transformers_understand_in_different_ways():
    with pytest.raises(ValueError, match=r"rope_theta=10000 for all layers, .*; give rope_parameters, with an object"):
        get_family(OLMO3).decoder_config(OLMO3 | {"rope_theta": 10000.0})
    whole = OLMO3 | {"rope_theta": 10000.0, "layer_types": ["full_attention"] * 32}
    assert get_family(whole).decoder_config(whole).rope_theta == 10000.0
    with pytest.raises(ValueError, match="no 'full_attention'"):
        get_family(OLMO3).decoder_config(families.hf_config("olmo3") | {"rope_parameters": {"rope_theta": 1e4}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": PHI4["rope_scaling"] | {"type": "yarn"}}, "rope_type='yarn'; of phi3 there are"),
        (
            {"rope_scaling": PHI4["rope_scaling"] | {"original_max_position_embeddings": 8192}},
            "original_max_position_embeddings=8192 in its rope, where 4096 is what counts",
        ),
        ({"partial_rotary_factor": 1.0}, "has 48 numbers in short_factor; expected one for each of 64 pairs"),
        ({"full_attn_mod": 2}, "full_attn_mod=2"),
    ],
)
def test_phi_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        get_family(PHI4).decoder_config(copy.deepcopy(PHI4) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["mamba", "attention"] * 20}, r"\['mamba'\] among its layer_types; .*Mamba layers are not"),
        ({"layer_types": ["attention"] * 39}, "39 layer_types; expected one for each of 40 layers"),
        ({"layer_types": None}, "no 'layer_types'"),
        ({"num_local_experts": 8}, "num_local_experts=8, .*those with experts are not"),
        ({"num_local_experts": None}, "num_local_experts=8, or none"),
        ({"position_embedding_type": "nope"}, "no position_embedding_type='rope'"),
        ({"normalization_function": "layernorm"}, "normalization_function='layernorm'"),
    ],
)
def test_granites_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        get_family(GRANITE4).decoder_config(GRANITE4 | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swiglu_alpha": 1.0}, "swiglu_alpha=1.0; implemented for model_type='gpt_oss': 1.702"),
        ({"swiglu_limit": 0}, "swiglu_limit=0; expected a number"),
        ({"experts_per_token": 2}, "experts_per_token=2; implemented for model_type='gpt_oss': 4"),
        ({"num_local_experts": 0}, "no experts"),
        ({"layer_types": ["chunked_attention"] * 24}, "layer_types=.*; implemented: 'sliding_attention' or"),
        ({"sinks": "none"}, "not implemented for model_type='gpt_oss': sinks='none'"),
    ],
)
def test_gpt_oss_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        get_family(GPT_OSS).decoder_config(copy.deepcopy(GPT_OSS) | changes)


def test_gpt_oss_without_a_rope_has_that_of_transformers():
    fields = {name: value for name, value in GPT_OSS.items() if name not in ("rope_scaling", "rope_theta")}
    config = get_family(fields).decoder_config(copy.deepcopy(fields))
    assert config == get_family(GPT_OSS).decoder_config(copy.deepcopy(GPT_OSS))
    assert config.rope_scaling.attention_factor == pytest.approx(0.1 * math.log(32) + 1)


def test_the_tensors_of_gpt_oss_in_mxfp4():
    """Those of the published files become those that the family reads, none left over, none decoded for it."""
    config = get_family(GPT_OSS).decoder_config(copy.deepcopy(GPT_OSS))
    not_read = lambda start, stop: np.zeros(0)
    rules = {rule.source: rule for rule in get_family(GPT_OSS).tensor_table(config) if rule.path}
    published = {}
    for name, rule in rules.items():
        if len(rule.shape) < 3:
            published[name] = TensorEntry(rule.shape, np.dtype(ml_dtypes.bfloat16), not_read)
            continue
        experts, inputs, outputs = rule.shape
        for end, shape in (("blocks", (inputs // 32, 16)), ("scales", (inputs // 32,))):
            published[f"{name}_{end}"] = TensorEntry((experts, outputs, *shape), np.dtype(np.uint8), not_read)
    assert published["model.layers.0.mlp.experts.gate_up_proj_blocks"].shape == (32, 5760, 90, 16)
    assert published["model.layers.23.mlp.experts.down_proj_scales"].shape == (32, 2880, 90)
    found = decoded(published, "made")
    assert {name: entry.shape for name, entry in found.items()} == {name: rule.shape for name, rule in rules.items()}
    assert {entry.dtype for entry in found.values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["mamba"] * 48}, "layer_types=.*; implemented: 'linear_attention' or 'full_attention' for"),
        ({"layer_types": ["linear_attention"] * 47}, "for each of 48 layers"),
        ({"mlp_only_layers": [3]}, r"mlp_only_layers=\[3\]; implemented"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2; implemented"),
        ({"num_experts": 0}, "num_experts=0; expected a whole number"),
        ({"attn_output_gate": False}, "attn_output_gate=False; implemented"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type='sigmoid'; implemented"),
        ({"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers=2; implemented"),
        ({"linear_num_value_heads": 24}, "delta_value_heads=24 must be a multiple of delta_key_heads=16"),
        ({"hc_count": 4}, "not implemented for model_type='qwen3_next': hc_count=4"),
    ],
)
def test_configs_of_qwen3_next_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        get_family(QWEN3_NEXT).decoder_config(copy.deepcopy(QWEN3_NEXT) | changes)


@pytest.mark.parametrize("fields", [QWEN3_NEXT, QWEN35_SMALL, QWEN35_MOE])
def test_the_layer_that_predicts_the_token_after_the_next_one_is_left_aside(fields):
    table = get_family(fields).tensor_table(get_family(fields).decoder_config(copy.deepcopy(fields)))
    left = {rule.source: rule.shape for rule in table if rule.source.startswith("mtp.")}
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    assert left["mtp.fc.weight"] == (width, 2 * width)
    assert left["mtp.layers.0.self_attn.q_proj.weight"] == (2 * 256 * heads, width)
    assert len(left) == 15 + (3 * fields["num_experts"] + 2 if "num_experts" in fields else 0)
    assert not any(rule.path or rule.required for rule in table if rule.source in left)


def test_a_ministral_says_how_its_queries_grow():
    fields = PUBLISHED["Ministral-3-3B"][0]
    without = {name: value for name, value in fields["rope_parameters"].items() if name != "llama_4_scaling_beta"}
    with pytest.raises(ValueError, match="no 'llama_4_scaling_beta', which model_type='ministral3' needs"):
        get_family(fields).decoder_config(fields | {"rope_parameters": without})
