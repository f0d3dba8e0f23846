"""Use a trained model outside of poad: export it, load it with transformers, and score actions."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from poad.cli import main
from poad.envs import make

with tempfile.TemporaryDirectory() as folder:
    run, to = Path(folder, "run"), Path(folder, "cook")
    main(["train", "--run", str(run), "--steps", "2048", "--eval.episodes", "10", "--quiet"])
    main(["export", str(run), "--to", str(to)])
    model = AutoModelForCausalLM.from_pretrained(to, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(to)

prompt, info = make("poad/TomatoSalad-v0").reset(seed=0)
for action in info["admissible_actions"]:
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(f"{prompt} {action}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprob = model(ids).logits[0, :-1].log_softmax(-1)
    score = logprob.gather(1, ids[0, 1:, None])[start - 1 :].sum()
    print(f"{score:8.2f}  {action}")
