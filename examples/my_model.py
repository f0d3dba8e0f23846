"""Any causal language model: a hub name or a directory; here a tiny random one made on the spot."""

import tempfile

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from poad import Config, train
from poad.config import ModelConfig
from poad.models import ASSETS

with tempfile.TemporaryDirectory() as folder:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny-kitchen")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    model = ModelConfig(name=folder, tuning="lora")
    for metrics in train(Config(model=model, steps=1024)):
        print(f"{metrics['env_steps']} steps, entropy {metrics['entropy']:.2f}")
