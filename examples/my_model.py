"""Train any causal language model by its hub name or directory.

This example makes a tiny random model and trains adapters on it.
"""

import tempfile

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from poad import Config, train
from poad.config import ModelConfig
from poad.lm import ASSETS

with tempfile.TemporaryDirectory() as folder:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny-kitchen")
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 4, 4
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    model = ModelConfig(name=folder, tuning="lora")
    for metrics in train(Config(model=model, steps=1024)):
        print(f"{metrics['env_steps']} steps, entropy {metrics['entropy']:.2f}")
