"""As on Efficient-DLM's card; the lines marked with a star are other than there."""

import sys

from transformers import AutoTokenizer

from dlm_serve import DiffusionLM  # *

repo_name = sys.argv[1] if len(sys.argv) > 1 else "nvidia/Efficient-DLM-4B"

tokenizer = AutoTokenizer.from_pretrained(repo_name)
model = DiffusionLM.from_pretrained(repo_name)  # *

prompt_ids = tokenizer("Diffusion language models are", return_tensors="pt").input_ids
out_ids, nfe = model.generate(
    prompt_ids,
    max_new_tokens=128,
    steps=128,
    block_length=32,
    shift_logits=False,
    temperature=0.7,
    threshold=0.9,
)

answer = tokenizer.batch_decode(out_ids[:, prompt_ids.shape[1] :], skip_special_tokens=True)[0]
print(f"NFE={nfe}, {out_ids.shape[1] - prompt_ids.shape[1]} tokens: {answer}")
